"""Asking the judge about a rollout: at once as answers end, again while too many scores are missing, and then not at all.

A step that lacks a few scores goes on without them. One that lacks many would train on whatever the judge happened to like, so
training waits for the judge, and stops rather than go on without it.
"""

from itertools import count

from rewards.judge import Judgement, Scorer
from rl.distributed import say_once
from rl.signals import sleep_unless_stopped

_numbers = count()  # of boards; all ranks make theirs together
FIRST_PAUSE = 5.0  # seconds; each further pause is twice as long


class JudgeUnavailable(RuntimeError):
    """Too many scores stayed missing for too long."""


class StoppedWhileWaiting(JudgeUnavailable):
    """A stop signal, which is its message, came while a judge was waited for."""


class ScoreBoard:
    """The scores of one rollout.

    Args:
        max_failures: largest share of missing scores to go on with.
        patience: seconds to wait in all for a judge that fails more often.
    """

    def __init__(self, scorer: Scorer, max_failures: float, patience: float) -> None:
        self.scorer, self.max_failures, self.patience = scorer, max_failures, patience
        self._number = next(_numbers)
        self._items: dict = {}
        self._futures: dict = {}

    def submit(self, place, item: Judgement) -> None:
        """Ask about one answer; `place` is any key to find its score under."""
        self._items[place] = item
        self._futures[place] = self.scorer.submit(item)

    def collect(self) -> dict:
        """Every score by its place, None where it is missing; waits for stragglers and for a judge that is down.

        Raises:
            JudgeUnavailable: more than `max_failures` of the scores are missing: for good, or still after `patience` seconds of
                pauses; or `StoppedWhileWaiting`.
        """
        waited, pause = 0.0, FIRST_PAUSE
        while True:
            self.scorer.finish()
            scores = {place: future.result() for place, future in self._futures.items()}
            missing = [place for place, score in scores.items() if score is None]
            if len(missing) <= self.max_failures * len(scores):
                return scores
            why = f" ({self.scorer.last_failure})" if self.scorer.last_failure else ""
            share = f"{len(missing)} of {len(scores)} scores are missing{why}"
            if not self.scorer.may_recover:
                raise JudgeUnavailable(f"{share}, and asking this judge again would not help")
            if waited >= self.patience:
                raise JudgeUnavailable(f"{share} after {waited:.0f} s of waiting for the judge")
            pause = min(pause, self.patience - waited)
            say_once(f"\n{share}; asking again in {pause:.0f} s", self._number)
            if received := sleep_unless_stopped(pause):
                raise StoppedWhileWaiting(received)
            waited, pause = waited + pause, 2 * pause
            for place in missing:
                self._futures[place] = self.scorer.submit(self._items[place])
