"""Eq. 5: r_acc = J(x, reference, answer) in [0, 1], behind one protocol."""

import re
from dataclasses import dataclass
from typing import Protocol

from rewards.accuracy import score_by_rule

SCORE = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


@dataclass(frozen=True)
class Judgement:
    """One answer to be scored."""

    question: str
    reference: str
    answer: str


class Scorer(Protocol):
    """Scores answers; None marks a score that could not be had, which is excluded from every mean and never counts as 0."""

    def score(self, items: list[Judgement]) -> list[float | None]: ...


class RuleScorer:
    """`--judge rules`: exact, free, and cannot fail."""

    def score(self, items: list[Judgement]) -> list[float | None]:
        return [score_by_rule(item.answer, item.reference) for item in items]


def parse_score(reply: str) -> float | None:
    """A judge's reply as a score. The whole reply must be one number in [0, 1]; anything else is None, a parse failure.

    Taking a number out of a longer reply pays for the wrong thing: the last number of "8/10" or "0.2 out of 1" is no score.
    """
    if not SCORE.fullmatch(reply.strip()):
        return None
    score = float(reply)
    return score if 0.0 <= score <= 1.0 else None
