"""Eq. 5: r_acc = J(x, reference, answer) in [0, 1], behind one protocol."""

import re
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from rewards.accuracy import score_by_rule

SCORE = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)

RIGHT = 0.5  # an answer with this score or more counts as right


class JudgeRefusedError(ValueError):
    """The judge's server refuses to work as it is asked to: wrong address, model name, key or request."""


class JudgeUnavailable(RuntimeError):
    """Too many scores stayed missing for too long."""


class StoppedWhileWaiting(JudgeUnavailable):
    """A stop signal came while a judge was waited for; its name is the message."""


@dataclass(frozen=True)
class Judgement:
    """One answer to be scored."""

    question: str
    reference: str
    answer: str


class Scorer(Protocol):
    """Scores answers, also while others are still being sampled.

    A score of None has failed: it is left out of every mean and never counts as 0. No future holds an exception.

    Attributes:
        last_failure: the reason of the last failed score, for a message; "" if none has failed.
        may_recover: a failed score may succeed later.
    """

    last_failure: str = ""
    may_recover: bool = False

    def submit(self, item: Judgement) -> "Future[float | None]":
        """Take one answer and return at once."""

    def finish(self) -> None:
        """Wait until every future returned so far has its score."""

    def take_stats(self) -> dict[str, float]:
        """Return the `judge/*` metrics since the last call."""

    def render(self, item: Judgement) -> str:
        """Return the judge's prompt about an answer, for people to read; "" if it has none."""
        return ""

    def close(self) -> None:
        """Free threads and connections."""


class RuleScorer(Scorer):
    """`--judge rules`: exact, free, and cannot fail."""

    def __init__(self) -> None:
        self._calls = 0

    def submit(self, item: Judgement) -> "Future[float | None]":
        self._calls += 1
        future: Future[float | None] = Future()
        future.set_result(score_by_rule(item.answer, item.reference))
        return future

    def take_stats(self) -> dict[str, float]:
        calls, self._calls = self._calls, 0
        return {"judge/calls": calls, "judge/failed": 0}


NAMED_JUDGES = {"rules": RuleScorer}  # --judge NAME: scorers that need neither a model nor a server


def parse_score(reply: str) -> float | None:
    """Return a judge's reply as a score. The whole reply must be one number in [0, 1]; anything else is None, a parse failure.

    A number is not taken out of a longer reply, because the last number of "8/10" or "0.2 out of 1" is no score.
    """
    if not SCORE.fullmatch(reply.strip()):
        return None
    score = float(reply)
    return score if 0.0 <= score <= 1.0 else None
