"""Is the judge able to judge? A handful of answers whose worth is known, scored before anything expensive is loaded.

A judge that cannot tell 43 from 53 would reward noise for a whole run, and nothing later would say so.
"""

from dataclasses import dataclass
from math import nan
from statistics import fmean

from rewards.judge import Judgement, Scorer
from rl.terminal import wrapped

MARGIN = 0.25  # by which right answers must score above the others, on average

_SUM = ("What is 17 + 26?", "43")
_CAPITAL = ("Name the capital of Japan.", "Tokyo")
_ICE = (
    "Why does ice float on water? Answer in one sentence.",
    "Water expands when it freezes, so ice is less dense than the liquid it floats on.",
)

CASES = (
    ("right", Judgement(*_SUM, "17 + 26 = 43")),
    ("right", Judgement(*_CAPITAL, "Tokyo")),
    ("right", Judgement(*_ICE, "Because frozen water takes up more space, it has a lower density than liquid water.")),
    ("wrong", Judgement(*_SUM, "17 + 26 = 53")),
    ("wrong", Judgement(*_CAPITAL, "Seoul")),
    ("wrong", Judgement(*_ICE, "Because ice is warmer than the water below it, and warm things rise.")),
    ("empty", Judgement(*_SUM, "...")),
    ("empty", Judgement(*_ICE, "I do not know.")),
)


@dataclass(frozen=True)
class Preflight:
    """What a judge made of the known answers.

    Attributes:
        scores: one for each of `CASES`; None where it gave none.
    """

    scores: tuple[float | None, ...]

    @property
    def failed(self) -> int:
        """Answers without a score."""
        return self.scores.count(None)

    @property
    def is_unreachable(self) -> bool:
        return self.failed == len(self.scores)

    def mean(self, kind: str) -> float:
        """Mean score of the "right", "wrong" or "empty" answers; NaN if none of them was scored."""
        scored = [score for (k, _), score in zip(CASES, self.scores, strict=True) if k == kind and score is not None]
        return fmean(scored) if scored else nan

    @property
    def is_able(self) -> bool:
        """Right answers score on average at least MARGIN above wrong ones, and above empty ones.

        One judge in sixteen that draws its scores at random passes. A kind of answer without any score does not.
        """
        right = self.mean("right")
        return all(right - self.mean(kind) >= MARGIN for kind in ("wrong", "empty"))  # False where a mean is NaN

    def table(self) -> str:
        """A line for each answer, with its score."""
        lines = ["score   answer is   question -> answer"]
        for (kind, item), score in zip(CASES, self.scores, strict=True):
            shown = "failed" if score is None else f"{score:.2f}"
            lines.append(wrapped(f"{shown:<8}{kind:<12}{item.question} -> {item.answer}"))
        return "\n".join(lines)

    def warning(self) -> str:
        """What to tell a user whose judge is not able."""
        means = ", ".join(f"{kind} {self.mean(kind):.2f}" for kind in ("right", "wrong", "empty"))
        return (
            "WARNING: this judge does not tell right answers from wrong ones: its scores are noise.\n"
            f"Mean score of known answers: {means}; {self.failed} of {len(self.scores)} failed.\n{self.table()}\n"
            "Use a stronger --judge, or --judge rules where answers can be checked by rule."
        )


def preflight(scorer: Scorer) -> Preflight:
    """Score the known answers. These calls do not count in the scorer's stats of the first step."""
    futures = [scorer.submit(item) for _, item in CASES]
    scorer.finish()
    scorer.take_stats()
    return Preflight(tuple(future.result(timeout=0) for future in futures))
