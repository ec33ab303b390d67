"""Magnitude by hand and against torch's own pruning."""

import torch
from torch import nn
from torch.nn.utils import prune as reference

from stages.lib.nets import calibrate
from stages.prune import magnitude

P = {"method": "magnitude", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def test_the_whole_layer_competes(none):
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0, 3.0, -4.0], [50.0, 60.0, -70.0, 0.5]])
    magnitude.Magnitude(**P, sparsity=0.5).prune(nn.Sequential(layer), none)
    assert layer.weight.tolist() == [[0, 0, 0, -4], [50, 60, -70, 0]]


def test_agrees_with_torch(tiny, none):
    layers = calibrate.linears(tiny)
    expected = {name: reference.L1Unstructured(0.3).compute_mask(layer.weight.detach(), torch.ones_like(layer.weight))
                for name, layer in layers.items()}  # fmt: skip
    magnitude.Magnitude(**P, sparsity=0.3).prune(tiny, none)
    for name, layer in layers.items():
        assert torch.equal(layer.weight != 0, expected[name].bool()), name
