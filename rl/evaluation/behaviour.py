"""The behaviour analyses: how a model refines (paper, sections 3.3 and B.2). Answers in, one dictionary out.

Every share comes with its count and a 95 % Wilson interval. The interval takes the answers to be independent. Several samples
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
from rl.evaluation.records import AnswerRecord
from rl.judging.judge import JudgePrompt
from rl.judging.local_judge import likely_option

TRANSITIONS = ("right->right", "wrong->wrong", "wrong->right", "right->wrong")
GRADES = ("high", "middle", "low")
HIGH, LOW = 0.85, 0.45  # the paper's bins of coherence and alignment
BINS = 10  # of histograms over [0, 1]
JUDGE_LIMIT = 300  # items given to the judge for each of its parts; a fixed choice among the refined answers
Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


def analyse(
    plain: list[AnswerRecord], refined: list[AnswerRecord], score: str, scorers: dict[str, Scorer] | None = None
) -> dict:
    """Compute every analysis that the answers allow; a plain dictionary, fit for JSON.

    Args:
        plain, refined: answers of the two methods, paired by their keys. All of them have a response.
        score: name of the score that says right or wrong.
        scorers: by the names of `JUDGE_PROMPTS`; none: the judge's parts are left out.
    """
    analysis = {
        "transitions": transitions(plain, refined, score),
        "whether": whether(plain, refined, score),
        **when_and_how_long(refined),
        "effect": effect(refined, score),
    }
    return analysis | ({"judge": judged(refined, scorers)} if scorers else {})


def is_right(record: AnswerRecord, score: str) -> bool:
    """Return whether an answer with a score counts as right where only yes or no will do."""
    return record.scores[score] >= RIGHT


def pair_answers(plain: list[AnswerRecord], refined: list[AnswerRecord], score: str) -> list[tuple[AnswerRecord, AnswerRecord]]:
    """Return (plain, refined) answers to the same question, both of them with a score."""
    partners = {record.key: record for record in plain}
    pairs = [(partners[record.key], record) for record in refined if record.key in partners]
    return [pair for pair in pairs if all(record.scores.get(score) is not None for record in pair)]


def transitions(plain: list[AnswerRecord], refined: list[AnswerRecord], score: str) -> dict:
    """Compute the shares of right->right, wrong->wrong, wrong->right and right->wrong, from plain to refined answer.

    These are two answers, drawn with two prompts: what changed between them need not be the work of a refinement.
    """
    pairs = pair_answers(plain, refined, score)
    by_benchmark: dict[str, list[str]] = {}
    for pair in pairs:
        kind = "->".join("right" if is_right(record, score) else "wrong" for record in pair)
        by_benchmark.setdefault(pair[0].benchmark, []).append(kind)
    return {
        "pairs": len(pairs),
        "questions": len({record.key[:2] for record, _ in pairs}),
        "left_out": {"plain": len(plain) - len(pairs), "refined": len(refined) - len(pairs)},
        "shares": shares([kind for kinds in by_benchmark.values() for kind in kinds], TRANSITIONS),
        "by_benchmark": {name: shares(kinds, TRANSITIONS) for name, kinds in sorted(by_benchmark.items())},
    }


def whether(plain: list[AnswerRecord], refined: list[AnswerRecord], score: str) -> dict:
    """Compute how often answers are well formed and refine, how many refinements they have, and whether need decides."""
    counts = [len(find_refinements(record.response)) for record in refined]
    by_need: dict[bool, list[bool]] = {True: [], False: []}
    for partner, record in pair_answers(plain, refined, score):
        by_need[is_right(partner, score)].append(bool(find_refinements(record.response)))
    return {
        "wellformed": share_of(parse_response(record.response) is not None for record in refined),
        "refine": share_of(count > 0 for count in counts),
        "refine_where_plain_wrong": share_of(by_need[False]),
        "refine_where_plain_right": share_of(by_need[True]),
        "refinements": shares([str(count) if count < 3 else "3+" for count in counts], ("0", "1", "2", "3+")),
    }


def when_and_how_long(refined: list[AnswerRecord]) -> dict:
    """Compute where refinements begin and how long they are, as shares of the response's characters.

    `tokens` estimates their length: the same share of the response's tokens.
    """
    found = [(r, record.tokens) for record in refined for r in find_refinements(record.response)]
    length = {
        "characters": _centre([r.characters for r, _ in found]),
        "tokens": _centre([r.share * tokens for r, tokens in found]),
    }
    return {
        "when": _distribution([r.begin for r, _ in found]),
        "how_long": _distribution([r.share for r, _ in found]) | length,
    }


def effect(refined: list[AnswerRecord], score: str) -> dict:
    """Compute what refinements do, as far as the text tells (see `answer_change`), and how right answers with and without
    them are.
    """
    refining = [record for record in refined if find_refinements(record.response)]
    others = [record for record in refined if not find_refinements(record.response)]
    changes = [answer_change(record.response) for record in refining]
    comparable = [change for change in changes if change is not None]
    right = {
        name: share_of(is_right(record, score) for record in group if record.scores.get(score) is not None)
        for name, group in (("refining", refining), ("not_refining", others))
    }
    return {
        "repeats": share_of(r.repeats for record in refining for r in find_refinements(record.response)),
        "answer": shares(comparable, ANSWER_CHANGES),
        "not_comparable": len(changes) - len(comparable),
        "right": right,
    }


def _centre(values: list[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "median": median(values)} if values else {"mean": None, "median": None}


def _distribution(values: list[float]) -> dict:
    """Return how many values in [0, 1] there are, their centre, and counts in equal bins."""
    bins = [0] * BINS
    for value in values:
        bins[min(BINS - 1, int(value * BINS))] += 1
    return {"count": len(values), **_centre(values), "bins": bins}


def wilson(count: int, of: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson 1927), which is sensible for few cases and for shares near 0 and 1.

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
    """Return a share as it is written to JSON, {count, of, share, low, high}, with its 95 % interval; None of no cases."""
    low, high = wilson(count, of) if of else (None, None)
    return {"count": count, "of": of, "share": count / of if of else None, "low": low, "high": high}


def share_of(cases) -> dict[str, float | None]:
    """Return the share of true ones."""
    cases = list(cases)
    return share(sum(cases), len(cases))


def shares(values: list, kinds: tuple) -> dict[str, dict]:
    """Return the share of each kind among the values."""
    return {kind: share(values.count(kind), len(values)) for kind in kinds}


def _judge_prompt(instruction: Instruction) -> JudgePrompt:
    prompts = instruction.for_server(), instruction.for_local()
    if not instruction.options:
        return JudgePrompt(*prompts)
    return JudgePrompt(*prompts, partial(parse_option, count=len(instruction.options)), instruction.letters, likely_option)


JUDGE_PROMPTS = {name: _judge_prompt(instruction) for name, instruction in INSTRUCTIONS.items()}


def behaviour_items(question: str, response: str) -> dict[str, list[Judgement]]:
    """Return what each of `INSTRUCTIONS` is asked about one response; nothing about a malformed one.

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


def judged(refined: list[AnswerRecord], scorers: dict[str, Scorer]) -> dict:
    """Compute coherence, alignment and kind of refinements. What the judge failed at is counted and in no share."""
    # the items, in an order that depends on nothing but the answers' keys
    items: dict[str, list[Judgement]] = {name: [] for name in scorers}
    for record in sorted(refined, key=lambda record: stable_seed("behaviour", *record.key)):
        for name, more in behaviour_items(record.question, record.response).items():
            items[name] += more
    # the judge's scores
    futures = {name: [scorers[name].submit(item) for item in items[name][:JUDGE_LIMIT]] for name in scorers}
    for scorer in scorers.values():
        scorer.finish()
    # their shares
    result = {}
    for name, pending in futures.items():
        values = [future.result() for future in pending]
        scores = [value for value in values if value is not None]
        counts = {"there_are": len(items[name]), "asked": len(values), "failed": len(values) - len(scores)}
        if name == "kind":
            result[name] = counts | {"shares": shares([option_of(value, KIND.options) for value in scores], KIND.options)}
        else:
            result[name] = counts | _centre(scores) | {"shares": shares([grade(value) for value in scores], GRADES)}
    return result


def grade(score: float) -> str:
    """Return the paper's bin of a coherence or alignment score: high from .85, low below .45."""
    return "high" if score >= HIGH else "low" if score < LOW else "middle"
