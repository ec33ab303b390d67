"""Rounding against the papers' equations in loops, gradients by hand, and what a training leaves behind."""

from functools import partial

import pytest
import torch
from torch import nn

from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate, losses, rounding
from stages.lib.nets.rounding import FakeQuantize
from stages.lib.training import loop
from stages.lib.training.config import Training

VOCABULARY, TERNARY = 64, {"weights": "ternary"}


def batch(index):
    return torch.randint(VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(index))


def run(model, folder, stop_after=None, weights=None, **more):
    p = Training(**{"steps": 12, "batch_size": 4, "precision": "float32", "fake_quantize": weights or TERNARY} | more)

    def stopping(index):
        if index == stop_after:
            raise KeyboardInterrupt
        return batch(index)

    def loss(ids):
        return losses.next_token(model(input_ids=ids).logits, ids)

    loop.fit(model, stopping, loss, p, [], folder)
    return model


def test_ternary_is_the_papers_equations():
    w = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    gamma = sum(abs(x) for row in w.tolist() for x in row) / 35
    rounded = rounding.ternary(w)
    for own, row in zip(rounded.tolist(), w.tolist(), strict=True):
        for found, x in zip(own, row, strict=True):
            assert found == pytest.approx(gamma * max(-1, min(1, round(x / gamma))), rel=2**-11)


def test_a_row_by_hand():
    """mean|w| = 0.5, so w/s = 1.5, -0.4, 0, -3, 0.1 and the inputs' step is 1.27 / 127."""
    w = torch.tensor([[0.75, -0.2, 0.0, -1.5, 0.05]])
    assert rounding.ternary(w).tolist() == [[0.5, 0.0, 0.0, -0.5, 0.0]]
    x = torch.tensor([[1.27, -0.014, 0.006, 0.0]])
    torch.testing.assert_close(rounding.eight_bits(x), torch.tensor([[1.27, -0.01, 0.01, 0.0]]))


def test_ternary_is_what_transformers_trains_with():
    """Its WeightQuant keeps a 32-bit scale; its ActQuant is ours but for the rounding of the quotient."""
    from transformers.integrations.bitnet import ActQuant, WeightQuant

    torch._dynamo.config.disable, before = True, torch._dynamo.config.disable
    try:
        w, x = torch.randn(32, 48), torch.randn(2, 5, 48)
        torch.testing.assert_close(rounding.ternary(w), WeightQuant.apply(w), rtol=2**-11, atol=0)
        torch.testing.assert_close(rounding.eight_bits(x), ActQuant.apply(x))
    finally:
        torch._dynamo.config.disable = before


def test_the_gradient_passes_as_if_nothing_were_rounded():
    """By hand: y = x w with x = 3, w = 2 gives dy/dw = x and dy/dx = w, of the rounded values 3 and 2."""
    layer = nn.Sequential(nn.Linear(1, 1, bias=False))
    layer[0].weight.data.fill_(2.0)
    x = torch.tensor([[3.0]], requires_grad=True)
    with rounding.rounding(layer, FakeQuantize(weights="ternary")):
        layer(x).sum().backward()
        assert layer[0].parametrizations.weight.original.grad.item() == 3.0
    assert x.grad.item() == 2.0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_integers_are_the_nearest_levels_and_the_same_when_rounded_again(bits):
    w = torch.randn(6, 64, generator=torch.Generator().manual_seed(bits))
    w[0].abs_()  # all above zero
    w[1] = -w[1].abs()
    w[2, :32] = 0
    rounded = rounding.integers(w, bits, 32)
    for own, group in zip(rounded.reshape(-1, 32), w.reshape(-1, 32), strict=True):
        step = (max(0, group.max().item()) - min(0, group.min().item())) / (2**bits - 1)
        assert len(own.unique()) <= 2**bits
        assert (own - group).abs().max().item() <= step * (0.5 + 2**bits * 2**-9)  # the step is rounded to 16 bits
    assert torch.equal(rounding.integers(rounded, bits, 32), rounded)
    assert (rounded[2, :32] == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_integers_are_what_torchao_trains_with(bits):
    """Its primitives, with a 32-bit step; ours has 10 bits of fraction, so a weight between two levels may differ."""
    primitives = pytest.importorskip("torchao.quantization.quant_primitives", reason="torchao is not in the lock")
    w = torch.randn(64, 128, generator=torch.Generator().manual_seed(bits))
    block, low, high = (1, 32), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    kind, bounds = primitives.MappingType.ASYMMETRIC, {"quant_min": low, "quant_max": high}
    step, zero = primitives.choose_qparams_affine(w, kind, block, torch.int8, **bounds, eps=1e-9)
    theirs = primitives._fake_quantize_affine(w, block, step, zero, torch.int8, **bounds)
    ours = rounding.integers(w, bits, 32)
    steps = ((ours - theirs) / step.repeat_interleave(32, 1)).abs()
    assert (steps > 2**bits * 2**-9).float().mean() < 0.005
    assert steps.max() < 1.02


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_training_leaves_three_values_a_matrix_and_learns(llama, tmp_path, optimizer):
    model, before = llama(VOCABULARY), llama(VOCABULARY)
    run(model, tmp_path / "c", optimizer=optimizer)
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in before.named_parameters()}
    for name, layer in calibrate.linears(model).items():
        assert type(layer) is nn.Linear and not layer._forward_pre_hooks
        scale = layer.weight.abs().max()
        assert set((layer.weight / scale).unique().tolist()) == {-1.0, 0.0, 1.0}, name
        assert scale.half().float() == scale
        assert not torch.equal(layer.weight.sign(), rounding.ternary(before.get_submodule(name).weight).sign())
    embedding = model.get_input_embeddings().weight
    assert len(embedding.unique()) > 1000 and model.lm_head.weight is embedding


def test_what_was_trained_is_what_is_left(llama, tmp_path):
    """The loss within the training's passes is that of the model it leaves, but for the inputs' rounding."""
    model, ids = run(llama(VOCABULARY), tmp_path / "c"), batch(99)
    after = losses.next_token(model(input_ids=ids).logits, ids)
    with torch.no_grad(), rounding.rounding(model, FakeQuantize(**TERNARY)):
        within = losses.next_token(model(input_ids=ids).logits, ids)
    assert after.item() == pytest.approx(within.item(), abs=5e-3)


def test_a_ternary_model_begins_as_itself(llama, tmp_path):
    model = run(llama(VOCABULARY), tmp_path / "c")
    before = {name: layer.weight.clone() for name, layer in calibrate.linears(model).items()}
    with rounding.rounding(model, FakeQuantize(**TERNARY)):
        pass
    for name, layer in calibrate.linears(model).items():
        assert torch.equal(layer.weight, before[name]), name


@pytest.mark.parametrize("weights", [TERNARY, {"weights": "int4", "group_size": 64}], ids=lambda each: each["weights"])
def test_interrupted_and_resumed_ends_in_the_same_weights(llama, tmp_path, monkeypatch, weights):
    go = partial(run, weights=weights, keep_zeros=True)
    whole = go(llama(VOCABULARY), tmp_path / "whole")
    monkeypatch.setattr(loop, "monotonic", iter(range(0, 10**9, 100)).__next__)  # a checkpoint every step
    with pytest.raises(KeyboardInterrupt):
        go(llama(VOCABULARY), tmp_path / "cut", stop_after=7)
    assert (tmp_path / "cut" / "state.safetensors").exists()
    resumed = go(llama(VOCABULARY), tmp_path / "cut")
    assert all(torch.equal(x, y) for x, y in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("weights", ["ternary", "int4"])
def test_pruned_weights_stay_zero_in_the_rounded_model(llama, tmp_path, weights):
    model = llama(VOCABULARY)
    for layer in calibrate.linears(model).values():
        layer.weight.data[:, ::2] = 0
    run(model, tmp_path / "c", weights={"weights": weights, "group_size": 64}, keep_zeros=True)
    for name, layer in calibrate.linears(model).items():
        assert (layer.weight[:, ::2] == 0).all() and (layer.weight[:, 1::2] != 0).any(), name


def test_projections_beside_the_model_are_not_rounded(llama):
    model = llama(VOCABULARY)
    model.scaffold = nn.Linear(8, 8)
    before = model.scaffold.weight.clone()
    with rounding.rounding(model, FakeQuantize(**TERNARY)):
        pass
    assert torch.equal(model.scaffold.weight, before)


def test_what_can_not_be_rounded_is_refused_before_any_work(llama, tmp_path):
    with pytest.raises(UserError, match=r"q_proj has 64 inputs; fake_quantize.group_size 128 needs a multiple of 128"):
        run(llama(VOCABULARY), tmp_path / "c", weights={"weights": "int4"})
    with pytest.raises(UserError, match=r"export.q: model.layers.0.self_attn.q_proj has 4,\d+ different weights"):
        rounding.require_ternary(llama(VOCABULARY), "export.q")
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="fake_quantize can round Linears; this gpt2 has others, like transformer.h.0"):
        run(gpt2, tmp_path / "c")
    with pytest.raises(ValueError, match="'ternary', 'int4', 'int3' or 'int2'"):
        Training(steps=1, fake_quantize={"weights": "int5"})
