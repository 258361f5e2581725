"""How a model refines: whether, when, how, and to what end (paper, sections 3.3 and B.2). Answers in, one dictionary out.

Every share comes with its count and a 95 % Wilson interval. The interval takes the answers to be independent; several samples
of one question are not, and then it is too narrow: the number of questions stands beside it.
"""

import math
from functools import partial
from statistics import fmean, median

from data.examples import stable_seed
from rewards.format import parse_response
from rewards.judge import RIGHT, Judgement, Scorer
from rewards.judge_prompts import INSTRUCTIONS, KIND, Instruction, option_of, parse_option
from rewards.refinements import ANSWER_CHANGES, answer_change, find_refinements, without_tags
from rl.evaluation.records import Answer
from rl.judging.judge import JudgePrompt
from rl.judging.local_judge import likely_option

TRANSITIONS = ("right->right", "wrong->wrong", "wrong->right", "right->wrong")
GRADES = ("high", "middle", "low")
HIGH, LOW = 0.85, 0.45  # the paper's bins of coherence and alignment
BINS = 10  # of histograms over [0, 1]


def analyse(
    plain: list[Answer], refined: list[Answer], *, scorers: dict[str, Scorer] | None = None, judge_limit: int = 300
) -> dict:
    """Every analysis that the answers allow; a plain dictionary, fit for JSON.

    Args:
        plain, refined: answers of the two methods, paired by their keys.
        scorers: by the names of `rl.evaluation.behaviour.ASKED`; none: the judge's parts are left out.
        judge_limit: items put to the judge for each of its parts; a fixed choice among the refined answers.
    """
    analysis = {
        "transitions": transitions(plain, refined),
        "whether": whether(plain, refined),
        **when_and_how_long(refined),
        "effect": effect(refined),
    }
    if scorers:
        analysis["judge"] = judged(refined, scorers, judge_limit)
    return analysis


def is_right(answer: Answer) -> bool:
    """Whether a graded answer counts as right where only yes or no will do."""
    return answer.score >= RIGHT


def pair_answers(plain: list[Answer], refined: list[Answer]) -> list[tuple[Answer, Answer]]:
    """(plain, refined) answers to the same question, both of them scored."""
    by_key = {answer.key: answer for answer in plain}
    pairs = [(by_key[answer.key], answer) for answer in refined if answer.key in by_key]
    return [(p, r) for p, r in pairs if p.score is not None and r.score is not None]


def transitions(plain: list[Answer], refined: list[Answer]) -> dict:
    """From plain to refined answer: the shares of right->right, wrong->wrong, wrong->right and right->wrong.

    These are two answers, drawn with two prompts: what changed between them need not be the work of a refinement.
    """
    pairs = pair_answers(plain, refined)
    by_benchmark: dict[str, list[str]] = {}
    for p, r in pairs:
        kind = f"{'right' if is_right(p) else 'wrong'}->{'right' if is_right(r) else 'wrong'}"
        by_benchmark.setdefault(p.benchmark, []).append(kind)
    return {
        "pairs": len(pairs),
        "questions": len({p.key[:2] for p, _ in pairs}),
        "left_out": {"plain": len(plain) - len(pairs), "refined": len(refined) - len(pairs)},
        "shares": shares([kind for kinds in by_benchmark.values() for kind in kinds], TRANSITIONS),
        "by_benchmark": {name: shares(kinds, TRANSITIONS) for name, kinds in sorted(by_benchmark.items())},
    }


def whether(plain: list[Answer], refined: list[Answer]) -> dict:
    """How often answers are well formed and refine, how many refinements they have, and whether need decides."""
    counts = [len(find_refinements(answer.text)) for answer in refined]
    pairs = pair_answers(plain, refined)

    def refining(of: list[Answer]) -> dict:
        return share(sum(bool(find_refinements(answer.text)) for answer in of), len(of))

    return {
        "wellformed": share(sum(parse_response(answer.text) is not None for answer in refined), len(refined)),
        "refine": share(sum(count > 0 for count in counts), len(refined)),
        "refine_where_plain_wrong": refining([r for p, r in pairs if not is_right(p)]),
        "refine_where_plain_right": refining([r for p, r in pairs if is_right(p)]),
        "refinements": shares([str(count) if count < 3 else "3+" for count in counts], ("0", "1", "2", "3+")),
    }


def when_and_how_long(refined: list[Answer]) -> dict:
    """Where refinements begin and how long they are, as shares of the response's characters.

    `tokens` estimates their length: the same share of the response's tokens.
    """
    found = [(r, answer.tokens) for answer in refined for r in find_refinements(answer.text)]
    return {
        "when": _distribution([r.begin for r, _ in found]),
        "how_long": _distribution([r.share for r, _ in found])
        | {
            "characters": _centre([r.characters for r, _ in found]),
            "tokens": _centre([r.share * tokens for r, tokens in found]),
        },
    }


def effect(refined: list[Answer]) -> dict:
    """What refinements do, as far as the text tells (see `answer_change`), and how right answers with and without them are."""
    refining = [answer for answer in refined if find_refinements(answer.text)]
    changes = [answer_change(answer.text) for answer in refining]
    comparable = [change for change in changes if change is not None]
    repeats = [r.repeats for answer in refining for r in find_refinements(answer.text)]
    others = [answer for answer in refined if not find_refinements(answer.text)]
    scored = {
        name: [answer for answer in group if answer.score is not None]
        for name, group in (("refining", refining), ("not_refining", others))
    }
    return {
        "repeats": share(sum(repeats), len(repeats)),
        "answer": shares(comparable, ANSWER_CHANGES),
        "not_comparable": len(changes) - len(comparable),
        "right": {name: share(sum(map(is_right, group)), len(group)) for name, group in scored.items()},
    }


def judged(refined: list[Answer], scorers: dict[str, Scorer], limit: int) -> dict:
    """Coherence, alignment and kind of refinements. What the judge failed at is counted and in no share."""
    asked: dict[str, list] = {name: [] for name in scorers}
    for answer in sorted(refined, key=lambda a: stable_seed("behaviour", *a.key)):
        for name, items in behaviour_items(answer.question, answer.text).items():
            asked[name] += items
    scores = ask_all(scorers, {name: items[:limit] for name, items in asked.items()})
    result = {}
    for name, values in scores.items():
        known = [value for value in values if value is not None]
        result[name] = {"there_are": len(asked[name]), "asked": len(values), "failed": len(values) - len(known)}
        if name == "kind":
            result[name]["shares"] = shares([option_of(value, KIND.options) for value in known], KIND.options)
        else:
            result[name] |= _centre(known) | {"shares": shares([grade(value) for value in known], GRADES)}
    return result


def grade(score: float) -> str:
    """The paper's bin of a coherence or alignment score: high from .85, low below .45."""
    return "high" if score >= HIGH else "low" if score < LOW else "middle"


def _centre(values: list[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "median": median(values)} if values else {"mean": None, "median": None}


def _distribution(values: list[float]) -> dict:
    """Values in [0, 1]: how many, their centre, and counts in equal bins."""
    bins = [0] * BINS
    for value in values:
        bins[min(BINS - 1, int(value * BINS))] += 1
    return {"count": len(values), **_centre(values), "bins": bins}


Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


def wilson(count: int, of: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): sensible for few cases and for shares near 0 and 1.

    Args:
        count, of: successes and trials; the trials are taken to be independent.
        z: quantile; default 95 %.

    Returns:
        Lower and upper end; (0, 1) without trials: nothing is known.
    """
    if of == 0:
        return 0.0, 1.0
    p, z2 = count / of, z * z
    centre, spread = p + z2 / (2 * of), z * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    low, high = (centre - spread) / (1 + z2 / of), (centre + spread) / (1 + z2 / of)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding may leave p = 0 or 1 just outside


def share(count: int, of: int) -> dict[str, float | None]:
    """A share as it is written to JSON: {count, of, share, low, high}, with its 95 % interval; None where there is nothing."""
    low, high = wilson(count, of)
    return {"count": count, "of": of, "share": count / of, "low": low, "high": high} if of else _nothing()


def _nothing() -> dict[str, float | None]:
    return {"count": 0, "of": 0, "share": None, "low": None, "high": None}


def shares(values: list, kinds: tuple) -> dict[str, dict]:
    """The share of each kind among the values."""
    return {kind: share(values.count(kind), len(values)) for kind in kinds}


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
