"""Drift by text that is not ours: the Python reference against itself, and with a tenth of program text in it."""

import argparse
import inspect
import pydoc_data.topics
import random
import re

import numpy as np
import pytest

from flows import drift


def sentences(text: str) -> list[str]:
    found = re.split(r"(?<=[.:])\s+", re.sub(r"\s+", " ", text))
    return sorted({each for each in found if 30 < len(each) < 300})


REFERENCE = sentences(" ".join(pydoc_data.topics.topics.values()))
OTHER = sorted({line.strip() for line in inspect.getsource(argparse).splitlines() if len(line.strip()) > 30})[:100]


def halves(seed: int, number: int) -> tuple[list[str], list[str]]:
    drawn = random.Random(seed).sample(REFERENCE, 2 * number)
    return drawn[:number], drawn[number:]


@pytest.mark.slow
def test_text_of_the_same_source_is_rarely_called_new():
    found = [drift.measure(*halves(seed, 300), seed=seed).found for seed in range(200)]
    assert sum(found) <= 10


@pytest.mark.parametrize("seed", range(5))
def test_a_tenth_of_other_text_is_found(seed):
    old, new = halves(seed, 10 * len(OTHER))
    new = [*new[len(OTHER) :], *OTHER]
    found = drift.measure(old, new, seed)
    assert found.found and found.auc > 0.5


def test_wholly_other_text_is_told_apart_row_by_row():
    old, _ = halves(0, len(OTHER))
    assert drift.measure(old, OTHER).auc > 0.9


def test_scores_leave_the_row_itself_out():
    texts = [f"{word} is here" for word in ("one", "two", "three", "four", "five", "six")]
    rows = drift.features(texts).toarray()
    sides = [0, 0, 0, 1, 1, 1]
    found = drift.scores(drift.features(texts), np.array(sides, float))
    for number, row in enumerate(rows):
        means = [
            np.mean([rows[other] for other in range(6) if other != number and sides[other] == side], 0)
            for side in (0, 1)
        ]
        assert found[number] == pytest.approx(row @ means[1] - row @ means[0])


def test_two_rows_a_side_are_needed():
    assert drift.measure(["a"], ["b", "c"]) is None
