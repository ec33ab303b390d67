"""SmoothQuant: its scales from the formula, and what it is for, outliers in the activations."""

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate
from stages.lib.store import models
from stages.quantize import int8, smoothquant

P = {"model": "pretrain/base", "tokens": "tokenize/bpe"}


def with_outliers(folder):
    net = models.load(folder)
    for layer in net.model.layers:
        layer.input_layernorm.weight.data[:6] *= 100
        layer.post_attention_layernorm.weight.data[:6] *= 100
    return net


@torch.no_grad()
@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_norms_give_to_the_weights_what_equation_4_says(model_folder, rows, strength):
    dense = with_outliers(model_folder)
    seen = {}
    readers = {name: dense.model.layers[0].self_attn.get_submodule(name) for name in ("q_proj", "k_proj", "v_proj")}
    calibrate.observe(dense, rows, {"q_proj": readers["q_proj"]}, lambda name, x: seen.setdefault(name, []).append(x))
    x_I = torch.cat(seen["q_proj"])
    range_I = x_I.amax(0) - x_I.amin(0)  # where the paper has max|x| llmcompressor takes the range, of weights 2 max|w|
    weight_I = 2 * torch.cat([layer.weight for layer in readers.values()]).abs().amax(0)
    expected_I = range_I**strength / weight_I ** (1 - strength)
    p = smoothquant.SmoothQuant(method="smoothquant", **P, strength=strength)
    net = p.quantize(with_outliers(model_folder), rows)
    given_I = dense.model.layers[0].input_layernorm.weight / net.model.layers[0].input_layernorm.weight
    torch.testing.assert_close(given_I, expected_I, rtol=1e-3, atol=0)


def test_architectures_whose_layers_it_does_not_know_are_refused(rows):
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(vocab_size=512, hidden_size=64, num_hidden_layers=1, state_size=16, num_heads=4, head_dim=32)
    with pytest.raises(UserError, match="smoothquant doesn't know which inputs it may scale in mamba2"):
        p = smoothquant.SmoothQuant(method="smoothquant", **P)
        p.quantize(Mamba2ForCausalLM(config), rows)


@torch.no_grad()
def test_loses_less_than_rounding_both_as_they_are(model_folder, rows):
    dense = with_outliers(model_folder)(rows).logits
    plain = int8.Int8(method="int8", **P, activations=True).quantize(with_outliers(model_folder), torch.empty(0, 0))
    smooth = smoothquant.SmoothQuant(method="smoothquant", **P).quantize(with_outliers(model_folder), rows)
    plain, smooth = ((net(rows).logits - dense).square().mean() for net in (plain, smooth))
    assert smooth < 0.5 * plain
