"""Advice of a run that has little to learn from: malformed responses, groups of equal rewards, steps without an update."""

from collections import Counter

from rewards.format import TAG, between, has_both_pairs, keeps_order, refines_inside_think
from rl.records import Group, Sample

FEW = 0.05  # share of well-formed responses below which RL has hardly a response to reinforce
LONG = 3  # steps in a row without an update, after which a response is shown
SHOWN = 600  # characters of that response
REMEDIES = (
    "remedies, in this order: --prompts one-shot (a worked example in the refine prompt); a warm start on some hundred written "
    "responses (python -m rl.sft --data); a longer --max-new-tokens where responses are cut off"
)


def malformed_because(sample: Sample) -> str:
    """Return the first reason for which Eq. 4 gives a response -1; "" for a well-formed one."""
    text = sample.text
    tags = [match.group() for match in TAG.finditer(text)]
    if sample.format == 1.0:
        return ""
    if sample.completion.finish_reason == "length":
        return "cut off at --max-new-tokens"
    for name in ("think", "answer"):
        if tags.count(f"<{name}>") != 1 or tags.count(f"</{name}>") != 1:
            return f"not exactly one <{name}> pair"
    if not has_both_pairs(text):
        return "an empty answer" if not between(text, "answer").strip() else "pairs in the wrong order"
    if not refines_inside_think(text):
        return "<refine> pairs unclosed, nested or outside of <think>"
    assert not keeps_order(text)
    return "text outside of the tags"


def format_advice(groups: list[Group]) -> str:
    """Return what the first batch tells of the format: a warning if there is hardly anything to reinforce, else ""."""
    samples = [sample for group in groups for sample in group.refine_samples]
    reasons = Counter(filter(None, map(malformed_because, samples)))
    share = 1 - reasons.total() / max(1, len(samples))
    if share >= FEW and any(group.dropped != "equal rewards" for group in groups):
        return ""
    why = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
    head = f"warning: {share:.0%} of the first {len(samples)} refine-prompt responses are well formed"
    return f"{head} ({why}). {REMEDIES}" if why else f"{head}, but no question has two different rewards: nothing can be learnt"


class UpdateWatch:
    """Watch for steps that train nothing, and say so without a line for each.

    Attributes:
        in_a_row: steps without an update since the last one with.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def lines(self, done: int, groups: list[Group]) -> list[str]:
        """Return what to print after a step: why nothing was trained, later a response, and the count when it goes on."""
        lines = [advice] if done == 1 and (advice := format_advice(groups)) else []
        if any(sample.trained for group in groups for sample in group.refine_samples):
            if self.in_a_row > LONG:
                lines.append(f"step {done}: trains again, after {self.in_a_row} steps without an update")
            self.in_a_row = 0
            return lines
        self.in_a_row += 1
        if self.in_a_row <= LONG:
            lines.append(f"step {done}: nothing to train on ({dropped_reasons(groups)}); no optimizer step, going on")
        if self.in_a_row == LONG:
            lines.append(f"{LONG} steps in a row without an update; further ones are counted only. {self._shown(groups)}")
        return lines

    def _shown(self, groups: list[Group]) -> str:
        """Return one response with its reward, and what helps."""
        sample = next(sample for group in groups for sample in group.refine_samples)
        text = sample.text if len(sample.text) <= SHOWN else f"{sample.text[:SHOWN]} ..."
        why = malformed_because(sample) or "well formed"
        return f"A response ({why}, reward {sample.reward}):\n{text}\n{REMEDIES}"


def dropped_reasons(groups: list[Group]) -> str:
    """Say why the groups of a step are not trained on, with counts."""
    counts = Counter(group.dropped or "responses left out of the loss" for group in groups)
    return ", ".join(f"{count} x {reason}" for reason, count in counts.items())
