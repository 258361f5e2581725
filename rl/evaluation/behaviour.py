"""The behaviour analyses: how a model refines (paper, sections 3.3 and B.2). Answers in, one dictionary out.

Each analysis is a part of it, {title, counts, shares, ...}, which behaviour_report.py shows without knowing what it is about: a
further analysis is one more function here. Every share comes with its count and a 95 % Wilson interval. The interval takes the
answers to be independent. Several samples of one question are not, and then it is too narrow.
"""

import math
from collections.abc import Iterable
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
GRADES = {0.85: "0.85 or more", 0.45: "0.45 to 0.85", 0.0: "below 0.45"}  # the paper's bins of a judge's score, by lower end
PAPER = {  # of its own model and tasks: 384 answers compared with the base model's, 300 judged
    "transitions": dict(zip(TRANSITIONS, (0.26, 0.08, 0.61, 0.05), strict=True)),
    "coherence": dict(zip(GRADES.values(), (0.80, 0.16, 0.04), strict=True)),
    "alignment": dict(zip(GRADES.values(), (0.94, 0.04, 0.02), strict=True)),
}
BINS = 10  # of histograms over [0, 1]
JUDGE_LIMIT = 300  # items given to the judge for each of its parts; a fixed choice among the refined answers
Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


def analyse(
    plain: list[AnswerRecord], refined: list[AnswerRecord], score: str, scorers: dict[str, Scorer] | None = None
) -> dict[str, dict]:
    """Compute every analysis that the answers allow: parts by name, fit for JSON.

    Args:
        plain, refined: answers of the two methods, paired by their keys. All of them have a response.
        score: name of the score that says right or wrong.
        scorers: by the names of `JUDGE_PROMPTS`; none: the judge's parts are left out.

    Returns:
        Each part has a title, and may have counts: number by label; shares: `share` by label, and the paper's; numbers: mean
        and median by label; bins: a histogram over [0, 1].
    """
    parts = {
        "transitions": transitions(plain, refined, score),
        **whether(plain, refined, score),
        **when_and_how_long(refined),
        **effect(refined, score),
        **judged(refined, scorers or {}),
    }
    return {name: part | ({"paper": PAPER[name]} if name in PAPER else {}) for name, part in parts.items()}


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
    kinds = ["->".join("right" if is_right(record, score) else "wrong" for record in pair) for pair in pairs]
    return {
        "title": "From plain to refined answer",
        "counts": {
            "pairs": len(pairs), "questions": len({record.key[:2] for record, _ in pairs}),
            "plain without a partner or a score": len(plain) - len(pairs),
            "refined without": len(refined) - len(pairs),
        },
        "shares": shares(kinds, TRANSITIONS),
    }  # fmt: skip


def whether(plain: list[AnswerRecord], refined: list[AnswerRecord], score: str) -> dict[str, dict]:
    """Compute how often answers are well formed and refine, how many refinements they have, and whether need decides."""
    counts = [len(find_refinements(record.response)) for record in refined]
    by_need: dict[bool, list[bool]] = {True: [], False: []}
    for partner, record in pair_answers(plain, refined, score):
        by_need[is_right(partner, score)].append(bool(find_refinements(record.response)))
    of_answers = {
        "well formed": share_of(parse_response(record.response) is not None for record in refined),
        "refine": share_of(count > 0 for count in counts),
        "refine, where the plain one is wrong": share_of(by_need[False]),
        "refine, where the plain one is right": share_of(by_need[True]),
    }
    numbers = shares([str(count) if count < 3 else "3 or more" for count in counts], ("0", "1", "2", "3 or more"))
    return {
        "whether": {"title": "Refine-prompt answers", "shares": of_answers},
        "how_many": {"title": "Refinements in an answer", "shares": numbers},
    }


def when_and_how_long(refined: list[AnswerRecord]) -> dict[str, dict]:
    """Compute where refinements begin and how long they are, as shares of the response's characters.

    Their length in tokens is an estimate: the same share of the response's tokens.
    """
    found = [(r, record.tokens) for record in refined for r in find_refinements(record.response)]
    length = {
        "characters": centre([r.characters for r, _ in found]),
        "tokens, by its share of the text": centre([r.share * tokens for r, tokens in found]),
    }
    when = distribution("Where refinements begin", "share of the response before them", [r.begin for r, _ in found])
    how_long = distribution("How long refinements are", "share of the response in them", [r.share for r, _ in found])
    return {"when": when, "how_long": how_long | {"numbers": how_long["numbers"] | length}}


def effect(refined: list[AnswerRecord], score: str) -> dict[str, dict]:
    """Compute what refinements do, as far as the text tells (see `answer_change`), and how right answers with and without
    them are.
    """
    refining = [record for record in refined if find_refinements(record.response)]
    others = [record for record in refined if not find_refinements(record.response)]
    changes = [answer_change(record.response) for record in refining]
    known = [change for change in changes if change is not None]
    right = {
        f"right, of answers that {name}": share_of(is_right(r, score) for r in group if r.scores.get(score) is not None)
        for name, group in (("refine", refining), ("do not", others))
    }
    repeats = share_of(r.repeats for record in refining for r in find_refinements(record.response))
    return {
        "effect": {
            "title": "The final answer of answers that refine",
            "counts": {"answers of another form, which cannot be compared": len(changes) - len(known)},
            "shares": shares(known, ANSWER_CHANGES),
        },
        "worth": {"title": "What refinements are worth", "shares": {"refinements that only repeat": repeats} | right},
    }


def centre(values: list[float]) -> dict[str, float | None]:
    """Return mean and median; None of no values."""
    return {"mean": fmean(values), "median": median(values)} if values else {"mean": None, "median": None}


def distribution(title: str, label: str, values: list[float]) -> dict:
    """Return a part about values in [0, 1]: how many there are, their centre, and counts in equal bins."""
    bins = [0] * BINS
    for value in values:
        bins[min(BINS - 1, int(value * BINS))] += 1
    return {"title": title, "counts": {"refinements": len(values)}, "numbers": {label: centre(values)}, "bins": bins}


def wilson(count: int, of: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of `count` successes in `of` independent trials (Wilson 1927).

    It is sensible for few cases and for shares near 0 and 1. Without trials nothing is known: (0, 1).
    """
    if of == 0:
        return 0.0, 1.0
    p, z2 = count / of, z * z
    centre, spread = p + z2 / (2 * of), z * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    low, high = (centre - spread) / (1 + z2 / of), (centre + spread) / (1 + z2 / of)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding may leave p = 0 or 1 just outside


def share_of(cases: Iterable[bool]) -> dict[str, float | None]:
    """Return the share of true ones as it is written to JSON, with its count and 95 % interval; None of no cases."""
    cases = list(cases)
    count, of = sum(cases), len(cases)
    low, high = wilson(count, of) if of else (None, None)
    return {"count": count, "of": of, "share": count / of if of else None, "low": low, "high": high}


def shares(values: list, kinds: Iterable) -> dict[str, dict]:
    """Return the share of each kind among the values."""
    return {kind: share_of(value == kind for value in values) for kind in kinds}


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


def judged(refined: list[AnswerRecord], scorers: dict[str, Scorer]) -> dict[str, dict]:
    """Compute coherence, alignment and kind of refinements. What the judge failed at is counted and in no share."""
    # the items, in an order that depends on nothing but the answers' keys
    items: dict[str, list[Judgement]] = {name: [] for name in scorers}
    for record in sorted(refined, key=lambda record: stable_seed("behaviour", *record.key)):
        for name, more in behaviour_items(record.question, record.response).items():
            if name in items:
                items[name] += more
    # the judge's scores
    futures = {name: [scorers[name].submit(item) for item in items[name][:JUDGE_LIMIT]] for name in scorers}
    for scorer in scorers.values():
        scorer.finish()
    # their shares
    parts = {}
    for name, pending in futures.items():
        scores = [score for future in pending if (score := future.result()) is not None]
        counts = {"there are": len(items[name]), "put to the judge": len(pending), "failed": len(pending) - len(scores)}
        parts[name] = {"title": f"{name.capitalize()}, by the judge", "counts": counts}
        if name == "kind":
            parts[name]["shares"] = shares([option_of(score, KIND.options) for score in scores], KIND.options)
        else:
            grades = [next(grade for least, grade in GRADES.items() if score >= least) for score in scores]
            parts[name] |= {"shares": shares(grades, GRADES.values()), "numbers": {"score": centre(scores)}}
    return parts
