"""How the loss of a training follows from its size, and which batch suits it: fits to a few finished trainings.

L(N, D) = E + A N^-alpha + B D^-beta, nats/token for N parameters and D tokens: Hoffmann et al. 2022, arXiv:2203.15556,
equation 2. By variable projection (Golub & Pereyra 1973; of scaling laws Czech et al. 2026, arXiv:2603.22339, package
vpnls): once alpha and beta are given, E, A and B are a linear least squares, so only two numbers are searched for.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares, nnls

EXPONENTS = np.arange(0.1, 2, 0.1)  # the search begins at the best pair of these
LOW, HIGH = 0.01, 2.0


class Run(NamedTuple):
    """A finished training."""

    parameters: int
    tokens: int
    batch: int  # rows a step
    loss: float  # nats/token, held out


class Law(NamedTuple):
    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta


def fit(runs: Sequence[Run]) -> Law:
    """The law with the least squared error; E, A and B are not negative (Lawson & Hanson 1974)."""
    parameters, tokens, _, losses = (np.array(column, dtype=float) for column in zip(*runs, strict=True))
    middle_n, middle_d = (
        np.exp(np.log(column).mean()) for column in (parameters, tokens)
    )  # keeps columns alike in size

    def columns(exponents: Sequence[float]) -> np.ndarray:
        alpha, beta = exponents
        powers = (parameters / middle_n) ** -alpha, (tokens / middle_d) ** -beta
        return np.stack([np.ones_like(losses), *powers], axis=1)

    def residuals(exponents: Sequence[float]) -> np.ndarray:
        matrix = columns(exponents)
        return matrix @ nnls(matrix, losses)[0] - losses

    start = min(product(EXPONENTS, EXPONENTS), key=lambda pair: nnls(columns(pair), losses)[1])
    alpha, beta = least_squares(residuals, start, bounds=(LOW, HIGH), xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    floor, a, b = nnls(columns((alpha, beta)), losses)[0]
    return Law(*map(float, (floor, a * middle_n**alpha, b * middle_d**beta, alpha, beta)))


def resampled(runs: Sequence[Run], draws: int, seed: int = 0) -> Iterator[Law]:
    """Laws of the runs drawn with replacement (Efron 1979), as far as a draw has three sizes and three token counts."""
    random = np.random.default_rng(seed)
    for _ in range(draws):
        drawn = [runs[i] for i in random.integers(len(runs), size=len(runs))]
        if len({run.parameters for run in drawn}) > 2 and len({run.tokens for run in drawn}) > 2:
            yield fit(drawn)


class Batches(NamedTuple):
    """What a batch adds to the law's loss: over its logarithm a parabola, whose lowest point moves with that of the
    tokens. That it moves with them and hardly with the size: Zhang et al. 2024, arXiv:2410.21676.

    Where it moves beyond what was tried nobody has seen: there it is taken to stand still.
    """

    coefficients: tuple[float, ...]  # of x^2, x, x y, y and 1; x and y are log2 of batch and tokens
    tried: tuple[int, ...]
    longest: int  # tokens

    def extra(self, batch: int, tokens: float) -> float:
        """Nats/token."""
        return float(np.dot(self.coefficients, terms(batch, min(tokens, self.longest))))

    def best(self, tokens: float) -> int:
        """Among those that were tried."""
        return min(self.tried, key=lambda batch: self.extra(batch, tokens))


def terms(batch: float, tokens: float) -> tuple[float, ...]:
    x, y = np.log2(batch), np.log2(tokens)
    return x**2, x, x * y, y, 1.0


def fit_batches(runs: Sequence[Run], law: Law) -> Batches:
    """To trainings of one size."""
    left = [run.loss - law.loss(run.parameters, run.tokens) for run in runs]
    found = np.linalg.lstsq(np.array([terms(run.batch, run.tokens) for run in runs]), np.array(left), rcond=None)[0]
    tried = sorted({run.batch for run in runs})
    return Batches(tuple(map(float, found)), tuple(tried), max(run.tokens for run in runs))
