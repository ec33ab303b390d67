"""Rounding to nearest against its formula, and the width of what is stored."""

import copy

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate, rounding
from stages.lib.nets.rounding import FakeQuantize
from stages.lib.store import models
from stages.quantize import __main__ as stage
from stages.quantize import rtn
from stages.quantize.parts import compressed

P = {"method": "rtn", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def nearest(weight, bits, group_size, symmetric):
    """The formula for one group after the other."""
    out, low, high = weight.clone(), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for row in out:
        for group in row.split(group_size):  # views: what is written here stands in `out`
            if symmetric:
                step, zero = group.abs().max() / ((high - low) / 2), 0
            else:
                step = (group.max().clamp_min(0) - group.min().clamp_max(0)) / (high - low)
                zero = (low - group.min().clamp_max(0) / step).round().clamp(low, high)
            group.copy_(((group / step + zero).round().clamp(low, high) - zero) * step)
    return out


@torch.no_grad()
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_weight_is_the_nearest_level_of_its_group_in_the_file_too(
    model_folder, tokenizer, tmp_path, bits, symmetric
):
    dense = models.load(model_folder)
    net = rtn.RTN(**P, bits=bits, symmetric=symmetric, group_size=64).quantize(
        models.load(model_folder), torch.empty(0, 0)
    )
    models.save(compressed.pack(net, torch.float32), tokenizer, tmp_path / "model")
    net = models.load(tmp_path / "model")
    net(torch.zeros(1, 1, dtype=torch.long))  # unpacks
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"):
        expected = nearest(dense.get_submodule(name).weight, bits, 64, symmetric)
        torch.testing.assert_close(net.get_submodule(name).weight, expected, msg=name)
    scales = 32 if symmetric else 32 + bits  # 32-bit floats here; the shapes, 14 of 16 bytes, are the rest
    stored = stage.size(dense, tmp_path / "model")["bits_per_weight"]
    assert stored == pytest.approx(bits + scales / 64, abs=0.003)


def test_widths_and_groups_that_the_format_cannot_hold_are_refused(tiny):
    with pytest.raises(ValueError, match="bits"):
        rtn.RTN(**P, bits=1)
    with pytest.raises(ValueError, match="group_size"):
        rtn.RTN(**P, group_size=100)
    with pytest.raises(UserError, match="q_proj has 64 inputs; group_size 128 needs a multiple of 128"):
        rtn.RTN(**P).quantize(tiny, torch.empty(0, 0))
    assert not any(hasattr(layer, "quantization_scheme") for layer in calibrate.linears(tiny).values())


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_was_trained_in_these_levels_is_packed_without_loss(model_folder, tokenizer, tmp_path, bits):
    dense = models.load(model_folder)
    with rounding.rounding(dense, FakeQuantize(weights=f"int{bits}", group_size=64)):
        pass
    net = rtn.RTN(**P, bits=bits, group_size=64).quantize(copy.deepcopy(dense), torch.empty(0, 0))
    compressed.round_rest(net, torch.float16)
    models.save(compressed.pack(net, torch.float16), tokenizer, tmp_path / "model")
    net = models.load(tmp_path / "model")
    net(torch.zeros(1, 1, dtype=torch.long))  # unpacks
    for name, layer in calibrate.linears(dense).items():
        assert torch.equal(net.get_submodule(name).weight, layer.weight), name
