"""How sure a share is."""

from math import sqrt
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)


def wilson(right: float, number: int) -> tuple[float, float]:
    """The interval that holds the true rate in 95 of 100 cases; sensible also at 0 and 1 and for few problems."""
    rate, scale = right / number, 1 + Z**2 / number
    centre = rate + Z**2 / (2 * number)
    half = Z * sqrt(rate * (1 - rate) / number + Z**2 / (4 * number**2))
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
