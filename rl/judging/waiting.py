"""The scores of a rollout: submitted as answers end, and submitted again while too many are missing.

A step that lacks a few scores goes on without them. One that lacks many would train on a chance selection of answers, so
training waits for the judge, and stops if it stays away.
"""

from itertools import count

from rewards.judge import Judgement, JudgeUnavailable, Scorer, StoppedWhileWaiting
from rl.distributed import print_once
from rl.run.console import sleep_unless_stopped

FIRST_PAUSE = 5.0  # seconds; each further pause is twice as long


class PendingScores:
    """Collects the scores of one rollout after another.

    Args:
        max_failures: largest share of missing scores to go on with.
        patience: seconds to wait in all for a judge that fails more often.
    """

    def __init__(self, scorer: Scorer, max_failures: float, patience: float) -> None:
        self.scorer, self.max_failures, self.patience = scorer, max_failures, patience
        self._rollouts = count()  # all ranks collect theirs together
        self._items: dict = {}
        self._futures: dict = {}

    def submit(self, key, item: Judgement) -> None:
        """Submit one answer; its score is collected under `key`."""
        self._items[key] = item
        self._futures[key] = self.scorer.submit(item)

    def collect(self) -> dict:
        """Return every score submitted since the last call by its key, None where it is missing.

        Waits for late scores, and for a judge that is down.

        Raises:
            JudgeUnavailable: more than `max_failures` of the scores are missing: for good, or still after `patience` seconds of
                pauses; or `StoppedWhileWaiting`.
        """
        items, futures, rollout = self._items, self._futures, next(self._rollouts)
        self._items, self._futures = {}, {}
        waited, pause = 0.0, FIRST_PAUSE
        while True:
            # enough scores: go on
            self.scorer.finish()
            scores = {key: future.result() for key, future in futures.items()}
            missing = [key for key, score in scores.items() if score is None]
            if len(missing) <= self.max_failures * len(scores):
                return scores

            # too few: give up, or wait and submit the missing ones again
            why = f" ({self.scorer.last_failure})" if self.scorer.last_failure else ""
            share = f"{len(missing)} of {len(scores)} scores are missing{why}"
            if not self.scorer.may_recover:
                raise JudgeUnavailable(f"{share}, and asking this judge again would not help")
            if waited >= self.patience:
                raise JudgeUnavailable(f"{share} after {waited:.0f} s of waiting for the judge")
            pause = min(pause, self.patience - waited)
            print_once(f"\n{share}; asking again in {pause:.0f} s", rollout)
            if received := sleep_unless_stopped(pause):
                raise StoppedWhileWaiting(received)
            waited, pause = waited + pause, 2 * pause
            for key in missing:
                futures[key] = self.scorer.submit(items[key])

    def take_stats(self) -> dict[str, float]:
        """Return the scorer's `judge/*` metrics since the last call."""
        return self.scorer.take_stats()
