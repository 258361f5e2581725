"""From answers to numbers: accuracy with its standard error, pass@k, maj@k, tokens, and differences between two evaluations.

Questions are the sampling units: a standard error and a bootstrap interval say how much would change with other questions of
the same kind.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from data.benchmarks import BENCHMARKS
from rewards.accuracy import RULES, rules_version
from rewards.format import parse_response
from rewards.judge import RIGHT
from rl.evaluation.methods import METHODS
from rl.evaluation.records import AnswerRecord, load_settings, read_records

RESAMPLES = 10_000  # of a bootstrap
LEVEL = 0.95
SCORES = {"accuracy": "scored by rule", "judge": "scored by the judge"}  # numbers of a cell that are averaged over benchmarks


def standard_error(values: list[float]) -> float | None:
    """Return the standard error of the mean; None of fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the chance that at least one of k answers is right, unbiased from n answers of which c are.

    It is 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374).
    """
    assert 0 <= right <= samples
    assert 1 <= k <= samples
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority_score(answers: list[str | None], scores: list[float], key: Callable[[str], str]) -> float:
    """Return the score of the answer that most samples give; the earliest of those that tie; 0 if none gives any."""
    keys = [None if answer is None else key(answer) for answer in answers]
    votes = Counter(k for k in keys if k is not None).most_common(1)  # the first of equals, in the order of their first votes
    return scores[keys.index(votes[0][0])] if votes else 0.0


def summarise(records: list[AnswerRecord], kind: str) -> dict:
    """Compute the numbers of one cell of the table.

    accuracy, accuracy_se: by rule, mean over questions of the mean over samples (mean@k); None if no question could be asked.
    judge, judge_se: by the judge; None without one. exact: share of exact matches, for DROP.
    pass@2, pass@4, ..., maj@k: with several samples, of what is right by rule; not of summaries, which are a matter of degree.
    tokens: generated per answer in all turns, of the questions that could be asked. truncated: share of answers with a turn
    that hit the limit. no_answer: share in which the rule finds no answer. wellformed, refined: of refine-prompt responses.
    review_missing: share without the second turn that they should have had. other_rules: answers that were scored by other
    rules than there are now.
    """
    # counts
    by_question: dict[str, list[AnswerRecord]] = {}
    for record in sorted(records, key=lambda record: record.sample):
        by_question.setdefault(record.id, []).append(record)
    readable = [record for record in records if not record.unreadable]
    judged = [record.scores.get("judge") for record in records]
    cell = {
        "questions": len(by_question),
        "samples": max(map(len, by_question.values()), default=0),
        "unreadable": sum(bool(group[0].unreadable) for group in by_question.values()),
        "unreadable_reason": next((record.unreadable for record in records if record.unreadable), ""),
        "other_rules": sum(record.rules != rules_version() for record in readable),
        "judge_failed": sum(score is None for score in judged) if any(score is not None for score in judged) else 0,
    }
    # means over questions
    for name, score in (("accuracy", "rule"), ("judge", "judge"), ("exact", "exact")):
        means = list(question_means(records, score).values()) if readable else []
        cell[name], cell[f"{name}_se"] = _mean(means), standard_error(means)
    # shares of answers
    cell["tokens"] = _mean(record.tokens for record in readable)
    cell["truncated"] = _mean(any(turn["finish_reason"] == "length" for turn in r.turns) for r in readable)
    cell["no_answer"] = _mean(record.answer is None for record in readable)
    cell["review_missing"] = _mean(map(_lacks_review, readable))
    if records and METHODS[records[0].method].mode == "refine":
        parsed = [parse_response(record.turns[-1]["response"]) for record in readable]
        cell["wellformed"] = _mean(response is not None for response in parsed)
        cell["refined"] = _mean(response is not None and response.refinements != () for response in parsed)
    if cell["samples"] > 1 and readable:
        cell |= _several_samples(list(by_question.values()), kind)
    return cell


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return fmean(values) if values else None


def _lacks_review(record: AnswerRecord) -> bool:
    """Return whether a second turn was due and could not be asked: too long, or characters without a token."""
    method = METHODS[record.method]
    is_due = method.review is not None and (not method.only_wrong or record.scores["rule"] < RIGHT)
    return is_due and len(record.turns) == 1


def _several_samples(groups: list[list[AnswerRecord]], kind: str) -> dict[str, float]:
    """Compute pass@k for k = 2, 4, ... and all samples (pass@1 is the accuracy), and the score of the majority."""
    rule = RULES[kind]
    if rule.key is None:
        return {}
    score = "exact" if rule.exact else "rule"
    right = [sum(r.scores[score] == 1.0 for r in group) for group in groups]
    most = min(map(len, groups))
    ks = sorted({*(2**i for i in range(1, most.bit_length())), most} - {1})
    passes = {f"pass@{k}": fmean(pass_at_k(len(g), c, k) for g, c in zip(groups, right, strict=True)) for k in ks}
    votes = [majority_score([r.answer for r in g], [r.scores["rule"] for r in g], rule.key) for g in groups]
    return passes | {f"maj@{max(map(len, groups))}": fmean(votes)}


def question_means(records: list[AnswerRecord], score: str) -> dict[str, float]:
    """Return the mean of each question over its samples: of a score, without failed ones, or of "tokens".

    Questions without a value are absent.
    """
    values: dict[str, list[float]] = {}
    for record in records:
        value = record.scores.get(score) if score != "tokens" else None if record.unreadable else record.tokens
        if value is not None:
            values.setdefault(record.id, []).append(value)
    return {id: fmean(of_question) for id, of_question in values.items()}


def paired_difference(columns: list[tuple[dict[str, float], dict[str, float]]], seed: int = 0) -> dict:
    """Compute B minus A over the questions that both answered, with a bootstrap interval of LEVEL.

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
    generator, means = np.random.default_rng(seed), np.zeros(RESAMPLES)
    for gap in gaps:
        for start in range(0, RESAMPLES, 500):  # 500 at a time, because all at once would take gigabytes for MMLU
            drawn = generator.integers(len(gap), size=(500, len(gap)))
            means[start : start + 500] += gap[drawn].mean(axis=1) / len(gaps)
    low, high = map(float, np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    difference = float(np.mean([gap.mean() for gap in gaps]))
    return {"difference": difference, "low": low, "high": high, "questions": questions}


def differences(a: str, b: str) -> dict:
    """Compute B minus A for every score and the tokens, by benchmark and over all of them.

    Args:
        a, b: FOLDER or FOLDER:METHOD.

    Returns:
        a, b; mixed_rules: not all answers were scored by the same rules; differences: {method, score, benchmark} and what
        `paired_difference` returns, of each. Scores are shares.
    """
    found, pairs = [], pair_up(a, b)
    for title, one, two in pairs:
        for score, key in (("accuracy", "rule"), ("judge", "judge"), ("tokens", "tokens")):
            columns = {name: (question_means(one[name], key), question_means(two[name], key)) for name in in_order(one)}
            columns = {name: pair for name, pair in columns.items() if all(pair)}
            parts = {name: [pair] for name, pair in columns.items()}
            if len(columns) > 1:
                parts["average"] = list(columns.values())
            for name, of_part in parts.items():
                found.append({"method": title, "score": score, "benchmark": name} | paired_difference(of_part))
    records = [record for _, *sides in pairs for side in sides for group in side.values() for record in group]
    rules = {record.rules for record in records if not record.unreadable}
    return {"a": a, "b": b, "mixed_rules": len(rules) > 1, "differences": found}


Cells = dict[str, list[AnswerRecord]]  # by benchmark


def pair_up(a: str, b: str) -> list[tuple[str, Cells, Cells]]:
    """Read the two sides of a comparison, each FOLDER or FOLDER:METHOD, as (title, records of A, records of B).

    Without methods named, every method that both have is compared with itself; if they share none and have one each, these.

    Raises:
        ValueError: a folder without evaluation, a method it lacks, nothing in common, or one id for two questions.
    """
    # the methods to compare
    (method_a, one), (method_b, two) = _read_side(a), _read_side(b)
    if method_a or method_b:
        pairs = [(method_a or method_b, method_b or method_a)]
    else:
        pairs = [(m, m) for m in one if m in two] or ([(*one, *two)] if len(one) == len(two) == 1 else [])
    if not pairs or pairs[0][0] not in one or pairs[0][1] not in two:
        has = f"{a} has {', '.join(one)}, {b} has {', '.join(two)}"
        raise ValueError(f"the two share no method; say which to compare: --diff A:METHOD B:METHOD ({has})")
    # their records on common benchmarks
    result = []
    for left, right in pairs:
        common = one[left].keys() & two[right].keys()
        if not common:
            raise ValueError(f"the two share no benchmark: {', '.join(one[left])} against {', '.join(two[right])}")
        sides = [{name: side[name] for name in common} for side in (one[left], two[right])]
        asked = [{(r.id, r.question, r.reference) for records in side.values() for r in records} for side in sides]
        ids = [{id for id, _, _ in questions} for questions in asked]
        if others := {id for id, _, _ in asked[0] ^ asked[1]} & ids[0] & ids[1]:
            raise ValueError(f"{min(others)} is another question in the two evaluations: their data differ")
        title = METHODS[left].title if left == right else f"{METHODS[left].title} -> {METHODS[right].title}"
        result.append((title, *sides))
    return result


def _read_side(text: str) -> tuple[str | None, dict[str, Cells]]:
    """Read FOLDER or FOLDER:METHOD, as (method or None, records by method and benchmark)."""
    folder, mark, method = text.rpartition(":")
    if not (mark and method in METHODS):
        folder, method = text, None
    load_settings(Path(folder))  # or it is no evaluation
    return method, read_records(Path(folder), method)


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of benchmarks in the order of tables: the paper's ten, then your own as they come."""
    names = list(names)
    return [name for name in BENCHMARKS if name in names] + [name for name in names if name not in BENCHMARKS]
