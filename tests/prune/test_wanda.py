"""Wanda against the formula written out with loops, by hand on a 2x4 layer, and against llmcompressor."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from stages.lib.nets import anatomy, calibrate
from stages.prune import wanda
from stages.quantize.parts import compressed

P = {"method": "wanda", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def test_scores_follow_equation_1(tiny, rows, given):
    """The slow, obvious version: block by block, row by row."""
    dense = copy.deepcopy(tiny)
    wanda.Wanda(**P, sparsity=0.5).prune(tiny, given(rows))
    for block, sparse in zip(dense.model.layers, tiny.model.layers, strict=True):
        seen = {name: [] for name in calibrate.linears(block)}
        calibrate.observe(dense, rows, calibrate.linears(block), lambda name, x_MI, seen=seen: seen[name].append(x_MI))
        for name, layer in calibrate.linears(block).items():
            x_MI, result = torch.cat(seen[name]), sparse.get_submodule(name).weight
            for o in range(layer.out_features):
                score = [abs(layer.weight[o, i].item()) * x_MI[:, i].norm().item() for i in range(layer.in_features)]
                kept = sorted(range(layer.in_features), key=lambda i: score[i])[layer.in_features // 2 :]  # noqa: B023
                assert sorted(kept) == result[o].nonzero().flatten().tolist(), f"{name} row {o}"
            layer.weight.data = result.data  # the next block sees what this one now produces


def test_large_input_beats_large_weight(given):
    """Norms of the inputs: 8 1 1 1. Row 1: scores 8 2 3 4, inputs 0 and 3 stay; row 2: 4 4 9 1, the later 4 stays."""
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.5, 4.0, 9.0, 1.0]])
    rows = torch.tensor([[[8.0, 0.6, 1.0, 0.0], [0.0, 0.8, 0.0, 1.0]]])
    wanda.Wanda(**P, sparsity=0.5).prune(nn.Sequential(layer), given(rows))
    assert layer.weight.tolist() == [[1, 0, 0, -4], [0, 4, 9, 0]]


def test_the_order_of_the_rows_does_not_matter(tiny, rows):
    a = wanda.input_norms(anatomy.matrices(tiny), partial(calibrate.observe, tiny, rows))
    b = wanda.input_norms(anatomy.matrices(tiny), partial(calibrate.observe, tiny, rows.flip(0)))
    assert all(torch.allclose(a[name], b[name], rtol=1e-5) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "structure"), [({"sparsity": 0.5}, "0:0"), ({"pattern": "2of4"}, "2:4")])
def test_agrees_with_llmcompressor(tiny, rows, given, target, structure):
    """Every mask of every block, so also the order of pruning and calibrating."""
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier

    modifier = WandaPruningModifier(sparsity=0.5, mask_structure=structure, targets=["re:.*_proj$"])
    reference = compressed.oneshot(copy.deepcopy(tiny), [modifier], rows)
    wanda.Wanda(**P, **target).prune(tiny, given(rows))
    for name, layer in calibrate.linears(tiny).items():
        assert torch.equal(layer.weight, reference.get_submodule(name).weight), name
