"""Eq. 7, the total reward of a response."""

from dataclasses import dataclass

from rewards.format import format_reward, parse_response
from rewards.refine import presence_reward, refine_reward

REFINE_REWARDS = ("compare", "single", "presence", "none")


@dataclass(frozen=True)
class Reward:
    """The parts of Eq. 7 and their sum; `refinements` counts the refine pairs of a well-formed response."""

    format: float
    accuracy: float
    refine: float
    total: float
    refinements: int


def needs_baseline(refine_mode: str) -> bool:
    """Whether the refinement reward compares with plain answers (Eq. 6), so that they must be sampled."""
    return refine_mode in ("compare", "single")


def total_reward(format: float, accuracy: float, refine: float, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
    """Eq. 7: R = r_format + r_acc + r_refine. Weights other than 1 are ours."""
    return weights[0] * format + weights[1] * accuracy + weights[2] * refine


def reward_response(
    text: str,
    accuracy: float,
    baseline: float | None,
    *,
    refine_mode: str,
    zeta: float,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Reward:
    """Every part of Eq. 7 for one refine-prompt response.

    Args:
        text: the response.
        accuracy: its score (Eq. 5).
        baseline: r̄ of its question; needed for "compare" and "single" only.
        refine_mode: "compare" (Eq. 6, r̄ from n plain answers), "single" (Eq. 6, r̄ from one), "presence", "none".
        zeta: half width of the tie band of Eq. 6.
        weights: of format, accuracy and refinement in the total.
    """
    assert refine_mode in REFINE_REWARDS, refine_mode
    response = parse_response(text)
    refined = response is not None and len(response.refinements) > 0
    if refine_mode == "none":
        refine = 0.0
    elif refine_mode == "presence":
        refine = presence_reward(refined=refined)
    else:
        assert baseline is not None, "a question without a baseline must be dropped, not scored"
        refine = refine_reward(accuracy, baseline, zeta=zeta, refined=refined)
    form = format_reward(text)
    count = len(response.refinements) if response else 0
    return Reward(form, accuracy, refine, total_reward(form, accuracy, refine, weights), count)
