"""Eq. 7, the total reward of a response."""


def total_reward(format: float, accuracy: float, refine: float, weights: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> float:
    """Eq. 7: R = r_format + r_acc + r_refine. Weights other than 1 are ours."""
    return weights[0] * format + weights[1] * accuracy + weights[2] * refine
