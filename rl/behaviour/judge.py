"""The judge's part of the behaviour analyses: coherence, alignment and kind of refinements, by the judge of --judge."""

from functools import partial

from rewards.behaviour_prompt import INSTRUCTIONS, Instruction, parse_option
from rewards.format import parse_response
from rewards.judge import Judgement, Scorer
from rewards.refinements import find_refinements, without_tags
from rl.judges import JudgePrompt
from rl.local_judge import likely_option


def _judge_prompt(instruction: Instruction) -> JudgePrompt:
    prompts = instruction.for_server(), instruction.for_local()
    if not instruction.options:
        return JudgePrompt(*prompts)
    return JudgePrompt(*prompts, partial(parse_option, count=len(instruction.options)), instruction.letters, likely_option)


ASKED = {name: _judge_prompt(instruction) for name, instruction in INSTRUCTIONS.items()}
TRIED = "alignment"  # a reference and an answer that says the same, or something else: what a judge is tried out on


def behaviour_items(question: str, response: str) -> dict[str, list[Judgement]]:
    """What each of `INSTRUCTIONS` is asked about one response; nothing about a malformed one.

    Coherence and kind are asked of each refinement, coherence only where something stands before it.
    """
    parsed = parse_response(response)
    if parsed is None:
        return {name: [] for name in INSTRUCTIONS}
    refinements = find_refinements(response)
    return {
        "coherence": [Judgement(question, r.before, f"{r.body}\n{r.after}".strip()) for r in refinements if r.before],
        "alignment": [Judgement(question, without_tags(parsed.think), parsed.answer)],
        "kind": [Judgement(question, r.before or "(nothing yet)", r.body) for r in refinements],
    }


def ask_all(scorers: dict[str, Scorer], items: dict[str, list[Judgement]]) -> dict[str, list[float | None]]:
    """The scores of each instruction's items, None where one could not be had or read."""
    futures = {name: [scorers[name].submit(item) for item in asked] for name, asked in items.items()}
    for name in items:
        scorers[name].finish()
    return {name: [future.result() for future in asked] for name, asked in futures.items()}
