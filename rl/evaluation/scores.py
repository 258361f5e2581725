"""From answers to numbers: accuracy with its standard error, pass@k, maj@k, tokens, and differences between two evaluations.

Questions are the sampling units: a standard error and a bootstrap interval say how much would change with other questions of
the same kind.
"""

import math
from collections import Counter
from statistics import fmean, stdev

import numpy as np

from rewards.accuracy import RULES, rules_version
from rewards.format import parse_response
from rewards.judge import RIGHT
from rl.evaluation.methods import METHODS
from rl.evaluation.records import AnswerRecord

RESAMPLES = 10_000  # of a bootstrap
LEVEL = 0.95


def standard_error(values: list[float]) -> float | None:
    """Of the mean; None of fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Chance that at least one of k answers is right, unbiased from n answers of which c are: 1 - C(n-c, k) / C(n, k)
    (Chen et al. 2021, arXiv 2107.03374).
    """
    assert 0 <= right <= samples
    assert 1 <= k <= samples
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_score(answers: list[str | None], scores: list[float], key) -> float:
    """Score of the answer that most samples give; the earliest of those that tie; 0 if none gives any."""
    keys = [None if answer is None else key(answer) for answer in answers]
    votes = Counter(k for k in keys if k is not None)
    if not votes:
        return 0.0
    winner = max(votes, key=votes.get)  # the first of equals, in the order of their first votes
    return scores[keys.index(winner)]


def summarise(records: list[AnswerRecord], kind: str) -> dict:
    """The numbers of one cell of the table.

    accuracy, accuracy_se: by rule, mean over questions of the mean over samples (mean@k); None if no question could be asked.
    judge, judge_se: by the judge; None without one. exact: share of exact matches, for DROP.
    pass_at, majority: with several samples, of what is right by rule; None for summaries, which are a matter of degree.
    tokens: generated per answer in all turns, of the questions that could be asked. truncated: share of answers with a turn
    that hit the limit. no_answer: share in which the rule finds no answer. wellformed, refined: of refine-prompt responses.
    reviewed: share of answers with a second turn; review_missing: share without one that should have had it. other_rules:
    answers that were scored by other rules than there are now.
    """
    by_question: dict[str, list[AnswerRecord]] = {}
    for record in sorted(records, key=lambda record: record.sample):
        by_question.setdefault(record.id, []).append(record)
    asked = [record for record in records if not record.unreadable]
    cell = {
        "questions": len(by_question),
        "samples": max(map(len, by_question.values()), default=0),
        "unreadable": sum(bool(group[0].unreadable) for group in by_question.values()),
        "unreadable_reason": next((record.unreadable for record in records if record.unreadable), ""),
        "other_rules": sum(record.rules != rules_version() for record in asked),
        "judge_failed": sum(record.scores.get("judge") is None for record in records),
    }
    for name, score in (("accuracy", "rule"), ("judge", "judge"), ("exact", "exact")):
        means = question_means(records, score) if asked else {}
        cell[name] = fmean(means.values()) if means else None
        cell[f"{name}_se"] = standard_error(list(means.values()))
    cell["tokens"] = fmean(record.tokens for record in asked) if asked else None
    cell["truncated"] = _share(any(turn["finish_reason"] == "length" for turn in r.turns) for r in asked)
    cell["no_answer"] = _share(record.answer is None for record in asked)
    cell["reviewed"] = _share(len(record.turns) > 1 for record in asked)
    cell["review_missing"] = _share(map(_lacks_review, asked))
    if records and METHODS[records[0].method].mode == "refine":
        parsed = [parse_response(record.turns[-1]["response"]) for record in asked]
        cell["wellformed"] = _share(response is not None for response in parsed)
        cell["refined"] = _share(response is not None and response.refinements != () for response in parsed)
    if cell["samples"] > 1 and asked:
        cell |= _several_samples(list(by_question.values()), kind)
    return cell


def _lacks_review(record: AnswerRecord) -> bool:
    """Whether a second turn was due and could not be asked: too long, or characters without a token."""
    method = METHODS[record.method]
    is_due = method.review is not None and (not method.only_wrong or record.scores["rule"] < RIGHT)
    return is_due and len(record.turns) == 1


def _several_samples(groups: list[list[AnswerRecord]], kind: str) -> dict:
    rule = RULES[kind]
    if rule.key is None:
        return {"pass_at": None, "majority": None}
    score = "exact" if rule.exact else "rule"
    right = [sum(r.scores[score] == 1.0 for r in group) for group in groups]
    most = min(map(len, groups))
    ks = sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | {most})
    passes = {str(k): fmean(pass_at_k(len(g), c, k) for g, c in zip(groups, right, strict=True)) for k in ks}
    votes = [majority_score([r.answer for r in g], [r.scores["rule"] for r in g], rule.key) for g in groups]
    return {"pass_at": passes, "majority": fmean(votes)}


def question_means(records: list[AnswerRecord], score: str) -> dict[str, float]:
    """Mean score of each question over its samples, leaving out failed scores; questions without any are absent."""
    scores: dict[str, list[float]] = {}
    for record in records:
        if record.scores.get(score) is not None:
            scores.setdefault(record.id, []).append(record.scores[score])
    return {id: fmean(values) for id, values in scores.items()}


def paired_difference(columns: list[tuple[dict[str, float], dict[str, float]]], seed: int = 0) -> dict:
    """B minus A over the questions that both answered, with a bootstrap interval of LEVEL.

    Args:
        columns: scores by question of A and of B, a pair for each benchmark. Questions are drawn within each benchmark, and
            benchmarks count alike, as in the table's average.

    Returns:
        difference, low, high, questions; None in place of numbers if there is no common question in some column.
    """
    gaps = [np.array([b[id] - a[id] for id in sorted(a.keys() & b.keys())]) for a, b in columns]
    questions = sum(len(gap) for gap in gaps)
    if not gaps or min(map(len, gaps)) == 0:
        return {"difference": None, "low": None, "high": None, "questions": questions}
    generator = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for gap in gaps:
        for start in range(0, RESAMPLES, 500):  # 500 at a time: all at once would take gigabytes for MMLU
            drawn = generator.integers(len(gap), size=(500, len(gap)))
            means[start : start + 500] += gap[drawn].mean(axis=1) / len(gaps)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "difference": float(np.mean([gap.mean() for gap in gaps])),
        "low": float(low),
        "high": float(high),
        "questions": questions,
    }


def _share(values) -> float | None:
    values = list(values)
    return fmean(values) if values else None
