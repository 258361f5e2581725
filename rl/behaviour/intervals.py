"""Shares of small samples, with how far they can be trusted."""

import math

Z95 = 1.959964  # standard normal quantile of a two-sided 95 % interval


def wilson(count: int, of: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): sensible for few cases and for shares near 0 and 1.

    Args:
        count, of: successes and trials; the trials are taken to be independent.
        z: quantile; default 95 %.

    Returns:
        Lower and upper end; (0, 1) without trials: nothing is known.
    """
    if of == 0:
        return 0.0, 1.0
    p, z2 = count / of, z * z
    centre, spread = p + z2 / (2 * of), z * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of))
    low, high = (centre - spread) / (1 + z2 / of), (centre + spread) / (1 + z2 / of)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # rounding may leave p = 0 or 1 just outside


def share(count: int, of: int) -> dict[str, float | None]:
    """A share as it is written to JSON: {count, of, share, low, high}, with its 95 % interval; None where there is nothing."""
    low, high = wilson(count, of)
    return {"count": count, "of": of, "share": count / of, "low": low, "high": high} if of else _nothing()


def _nothing() -> dict[str, float | None]:
    return {"count": 0, "of": 0, "share": None, "low": None, "high": None}


def shares(values: list, kinds: tuple) -> dict[str, dict]:
    """The share of each kind among the values."""
    return {kind: share(values.count(kind), len(values)) for kind in kinds}
