"""Where noise ends: the spectrum of a random matrix. Marchenko & Pastur 1967; in networks: arXiv:2602.22345.

S = X^T X / n of n rows with D independent entries of variance s^2 has its eigenvalues between s^2 (1 - sqrt(D / n))^2
and s^2 (1 + sqrt(D / n))^2; what lies above is no noise.
"""

import math

import torch
from torch import Tensor


def edge(values_D: Tensor, samples: int) -> float:
    """The largest eigenvalue of noise alone: s^2 (1 + sqrt(D / n))^2."""
    return noise(values_D, samples) * (1 + math.sqrt(len(values_D) / samples)) ** 2


def noise(values_D: Tensor, samples: int) -> float:
    """s^2: from the median, then least squares of what lies below that edge to the law's quantiles.

    The law scales with s^2, so the fit of sorted eigenvalues to s^2 times the quantiles is closed.
    """
    ratio = len(values_D) / samples
    values_D = values_D.sort().values.clamp_min(0)
    first = values_D.median() / quantiles(ratio, len(values_D)).to(values_D).median()
    bulk_B = values_D[values_D <= first * (1 + math.sqrt(ratio)) ** 2]
    expected_B = quantiles(len(bulk_B) / samples, len(bulk_B)).to(values_D)
    return float(bulk_B @ expected_B / (expected_B @ expected_B))


def quantiles(ratio: float, count: int) -> Tensor:
    """Of the Marchenko-Pastur law for s^2 = 1 and D / n = ratio <= 1, at the middles of `count` equal shares.

    density(x) = sqrt((upper - x)(x - lower)) / (2 pi ratio x), summed over x = middle - half cos(angle), which is dense
    at both edges, where the density is steep.
    """
    middle, half = 1 + ratio, 2 * math.sqrt(ratio)
    angle_G = torch.linspace(0, math.pi, 4097, dtype=torch.float64)
    x_G = (middle - half * angle_G.cos()).clamp_min(1e-12)
    cumulative_G = torch.cumulative_trapezoid((half * angle_G.sin()).square() / (2 * math.pi * ratio * x_G), angle_G)
    shares_C = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return x_G[1:][torch.searchsorted(cumulative_G / cumulative_G[-1], shares_C).clamp_max(4095)]
