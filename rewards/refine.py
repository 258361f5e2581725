"""Eq. 6, the refinement reward, the baseline r̄ that it compares with, and Eq. 7, the total."""

ROUNDING = 1e-9  # a gap of exactly zeta is a tie; this absorbs the rounding of the subtraction and of the mean


def baseline_accuracy(scores: list[float | None]) -> float | None:
    """r̄ = mean of the plain answers' r_acc. Failed scores (None) are left out; without any score there is no baseline."""
    scored = [score for score in scores if score is not None]
    return sum(scored) / len(scored) if scored else None


def refine_reward(accuracy: float, baseline: float, *, zeta: float, refined: bool) -> float:
    """Eq. 6: r_refine = +1    if r_acc > r̄ + zeta
                         -1    if r_acc < r̄ - zeta
                         -0.5  otherwise: the refinement cost tokens and changed nothing

    The tie band is closed: a gap of exactly zeta is a tie.

    Args:
        accuracy: r_acc of the response.
        baseline: r̄.
        zeta: half width of the tie band.
        refined: the response is well-formed and contains a refinement; without one the reward is 0.
    """
    if not refined:
        return 0.0
    gap = accuracy - baseline
    if gap > zeta + ROUNDING:
        return 1.0
    if gap < -zeta - ROUNDING:
        return -1.0
    return -0.5


def refinement_reward(mode: str, accuracy: float, baseline: float | None, *, zeta: float, refined: bool) -> float:
    """Return r_refine as `--refine-reward` defines it.

    Args:
        mode: "compare" (Eq. 6, r̄ from n plain answers), "single" (Eq. 6, r̄ from one), "presence" (+1 for any), "none".
        baseline: r̄; needed for "compare" and "single" only.
    """
    if mode == "none":
        return 0.0
    if mode == "presence":
        return 1.0 if refined else 0.0  # the ablation "w/o comparison"
    assert baseline is not None, "a question without a baseline must be dropped, not scored"
    if mode in ("compare", "single"):
        return refine_reward(accuracy, baseline, zeta=zeta, refined=refined)
    raise ValueError(f"no refinement reward is called {mode!r}: compare, single, presence or none")


def total_reward(format: float, accuracy: float, refine: float) -> float:
    """Eq. 7: R = r_format + r_acc + r_refine."""
    return format + accuracy + refine
