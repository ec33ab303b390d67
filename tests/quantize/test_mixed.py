"""Mixed widths: the measurement against plain rounding, the budget against the file."""

import json

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.store import models
from stages.quantize import __main__ as stage
from stages.quantize import gptq, mixed, rtn
from stages.quantize.parts import compressed

P = {"model": "pretrain/base", "tokens": "tokenize/bpe"}


@torch.no_grad()
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_measures_with_the_rounding_of_rtn(model_folder, bits, symmetric):
    dense = models.load(model_folder)
    net = rtn.RTN(method="rtn", **P, bits=bits, symmetric=symmetric).quantize(
        models.load(model_folder), torch.empty(0, 0)
    )
    name = "model.layers.0.mlp.up_proj"
    net(torch.zeros(1, 1, dtype=torch.long))
    own = mixed.rounded(dense.get_submodule(name).weight, bits, 128, symmetric)
    scale, zero = net.get_submodule(name).weight_scale, getattr(net.get_submodule(name), "weight_zero_point", None)
    low = -(2 ** (bits - 1))
    zero = 0 if zero is None or symmetric else zero[..., None].float()
    w_OGI = dense.get_submodule(name).weight.unflatten(1, (-1, 128))
    theirs = (((w_OGI / scale[..., None] + zero).round().clamp(low, -low - 1) - zero) * scale[..., None]).flatten(1)
    torch.testing.assert_close(own, theirs)


@torch.no_grad()
def test_a_layer_that_matters_gets_more_bits_and_the_budget_holds(model_folder, rows, tokenizer, tmp_path):
    net = models.load(model_folder)
    net.model.layers[1].mlp.down_proj.weight *= 1e-3  # nothing depends on it
    models.save(net, tokenizer, tmp_path / "dense")
    p = mixed.Mixed(method="mixed", **P, bits=3.2)
    packed = p.quantize(models.load(tmp_path / "dense"), rows)
    compressed.round_rest(packed, torch.float16)
    models.save(compressed.pack(packed, torch.float16), tokenizer, tmp_path / "model")
    seen = stage.size(net, tmp_path / "model")
    assert 3.1 < seen["bits_per_weight"] <= 3.2
    groups = json.loads((tmp_path / "model/config.json").read_text())["quantization_config"]["config_groups"]
    width = {name: group["weights"]["num_bits"] for group in groups.values() for name in group["targets"]}
    assert width["model.layers.1.mlp.down_proj"] == 2 < max(width.values())

    even = gptq.GPTQ(method="gptq", **P, bits=3).quantize(models.load(tmp_path / "dense"), rows)
    expected = net(rows).logits.log_softmax(-1)
    kl = [
        (expected.exp() * (expected - each(rows).logits.log_softmax(-1))).sum(-1).mean()
        for each in (models.load(tmp_path / "model"), even)
    ]
    assert kl[0] < kl[1]


def test_a_budget_below_the_smallest_width_is_refused_before_measuring(model_folder):
    with pytest.raises(UserError, match=r"2.0 bits/weight are too few: widths \(2, 3, 4, 6, 8\) take at least 2.14"):
        mixed.Mixed(method="mixed", **P, bits=2.0).quantize(models.load(model_folder), torch.zeros(0, 8))
    with pytest.raises(ValueError, match="widths"):
        mixed.Mixed(method="mixed", **P, widths=[7, 8])
