"""What is said of a classifier beside its accuracy."""

from collections.abc import Sequence
from statistics import mean

import numpy as np

BINS = 10  # of confidence


def macro_f1(expected: Sequence[str], said: Sequence[str]) -> float:
    """Mean over the labels that occur of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for label in sorted(set(expected)):
        hits = sum(e == s == label for e, s in zip(expected, said, strict=True))
        scores.append(2 * hits / (sum(e == label for e in expected) + sum(s == label for s in said)))
    return mean(scores)


def calibration_error(confidence_N: np.ndarray, right: Sequence[bool]) -> float:
    """Expected calibration error: sum over bins of their share times |accuracy - mean confidence|, in [0, 1]."""
    bins_N = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    marks_N = np.array(right, dtype=float)
    gaps = [abs((marks_N - confidence_N)[bins_N == number].sum()) for number in range(BINS)]
    return float(sum(gaps) / len(right))
