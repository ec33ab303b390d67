"""Masks by hand, against numpy, and as invariants."""

import numpy as np
import pytest
import torch

from stages.lib.nets import masks


def test_by_hand():
    score = torch.tensor([[3.0, 1.0, 2.0, 4.0], [1.0, 9.0, 8.0, 7.0]])
    assert masks.keep(score, 0.5, None).int().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert masks.keep(score, 0.75, None).int().tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]


def test_a_pattern_looks_at_neighbours_only():
    score = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 2.0, 3.0, 4.0]])
    assert masks.keep(score, None, "2of4").int().tolist() == [[1, 1, 0, 0, 0, 0, 1, 1]]
    assert masks.keep(score, None, "4of8").int().tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_ties_still_give_the_exact_count(value):
    """A layer of equal scores, e.g. dead inputs: the asked number goes, the first ones."""
    score = torch.full((3, 8), value)
    assert masks.keep(score, 0.25, None).int().tolist() == [[0, 0, 1, 1, 1, 1, 1, 1]] * 3
    assert masks.keep(score, None, "2of4").int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]] * 3


@pytest.mark.parametrize("sparsity", [0.1, 0.33, 0.5, 0.9])
def test_agrees_with_numpy(sparsity):
    score = torch.rand(16, 100, generator=torch.Generator().manual_seed(0))
    threshold = np.sort(score.numpy(), axis=1)[:, round(100 * sparsity)][:, None]
    assert np.array_equal(masks.keep(score, sparsity, None).numpy(), score.numpy() >= threshold)
