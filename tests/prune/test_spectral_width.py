"""Spectral width: a rotation changes nothing, planted spikes and a planted subspace are found."""

import copy
import math

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy, losses
from stages.lib.store import models
from stages.prune import spectral_width
from stages.prune.parts import marchenko_pastur

P = {"method": "spectral_width", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def orthogonal(size, kept=None):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(3)))[0][:, :kept]


def kin(kind):
    """A model of each known kind, with gains and biases that are not what they begin as."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": kind != "mistral"}
    biases = {"attention_bias": True, "mlp_bias": True} if kind == "llama" else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **sizes, **heads, **biases, initializer_range=0.2, pad_token_id=0)
    ).eval()
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.data += torch.randn_like(weight) / 3
    return model


@pytest.mark.parametrize("kind", anatomy.PLAIN)
def test_all_directions_in_another_basis_are_the_same_model(kind, rows):
    model = kin(kind)
    with torch.no_grad():
        before = model(rows[:2]).logits
    spectral_width.fold(model)
    torch.testing.assert_close(model(rows[:2]).logits, before, atol=1e-4, rtol=1e-4)
    rotated = spectral_width.project(model, orthogonal(32))
    torch.testing.assert_close(rotated(rows[:2]).logits, before, atol=1e-4, rtol=1e-4)
    weights = model.state_dict()
    for name, weight in rotated.state_dict().items():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "gate_proj.weight")):
            assert not torch.allclose(weight, weights[name], atol=1e-2), name


def test_width_that_was_never_used_goes_without_a_trace(tiny, rows):
    """A stream of 64 in 96 dimensions, some of them empty: the scale of every norm must follow the width."""
    with torch.no_grad():
        before = tiny(rows[:2]).logits
    spectral_width.fold(tiny)
    wide = spectral_width.project(tiny, orthogonal(96)[:64])
    assert wide.config.hidden_size == 96
    torch.testing.assert_close(wide(rows[:2]).logits, before, atol=1e-4, rtol=1e-4)
    spectral_width.fold(wide)
    back = spectral_width.project(wide, orthogonal(96)[:64].T)
    assert back.config.hidden_size == 64
    torch.testing.assert_close(back(rows[:2]).logits, before, atol=1e-4, rtol=1e-4)


def test_the_empty_directions_are_found(tiny, rows, given):
    """A stream of 16 turned into 96 dimensions, noise in all of them: the pruner must find the 16 by itself."""
    torch.manual_seed(0)
    spectral_width.fold(tiny)
    narrow = spectral_width.project(tiny, orthogonal(64, 16))
    expected = copy.deepcopy(narrow)
    spectral_width.fold(narrow)
    wide = spectral_width.project(narrow, orthogonal(96)[:16])
    wide.model.embed_tokens.register_forward_hook(lambda _, __, x_BTD: x_BTD + 1e-3 * torch.randn_like(x_BTD))
    pruned = spectral_width.SpectralWidth(**P, multiple=4).prune(wide, given(rows))
    assert 16 <= pruned.config.hidden_size <= 20
    assert losses.compare(models.logits(expected), models.logits(pruned), rows)["kl"] < 1e-3


@pytest.mark.parametrize(("hidden", "tokens", "spikes"), [(64, 256, 5), (256, 1024, 20), (128, 160, 4), (256, 4000, 0)])
def test_noise_and_planted_spikes_are_told_apart(hidden, tokens, spikes):
    """Noise of variance 2.89 in all directions, 17 times that in some."""
    random = torch.Generator().manual_seed(0)
    x_MD = 1.7 * torch.randn(tokens, hidden, generator=random, dtype=torch.float64)
    strong_MK = 6.8 * torch.randn(tokens, spikes, generator=random, dtype=torch.float64)
    x_MD += strong_MK @ orthogonal(hidden, spikes).double().T
    values_D = torch.linalg.eigvalsh(x_MD.T @ x_MD / tokens)
    assert marchenko_pastur.noise(values_D, tokens) == pytest.approx(2.89, rel=0.03)
    found = int((values_D > marchenko_pastur.edge(values_D, tokens)).sum())
    assert spikes <= found <= spikes + (not spikes)  # noise alone ends around its edge (Tracy & Widom 1994), not at it


def test_quantiles_are_those_of_the_density():
    """Mean 1 and variance q (Marchenko & Pastur 1967), the support's ends, and by summing the density in a loop."""
    for ratio in (0.01, 0.25, 1.0):
        values = marchenko_pastur.quantiles(ratio, 2000)
        assert values.mean().item() == pytest.approx(1, abs=2e-3)
        assert values.var().item() == pytest.approx(ratio, rel=1e-2)
        lower, upper = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
        assert lower - 1e-9 <= values[0] and values[-1] <= upper + 1e-9
    step, total, x = 1e-4, 0.0, 0.25
    while total < 0.3:  # q = 1/4: lower end 1/4, upper 9/4
        x += step
        total += step * math.sqrt((2.25 - x) * (x - 0.25)) / (2 * math.pi * 0.25 * x)
    assert marchenko_pastur.quantiles(0.25, 1000)[300].item() == pytest.approx(x, abs=3e-3)


def test_covariance_is_the_mean_of_the_outer_products(tiny, rows):
    """In loops over what transformers says the stream is, normalised by hand."""
    spectral_width.fold(tiny)
    between = []  # the stream between attention and MLP, which is no hidden state
    for block in tiny.model.layers:
        block.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: between.append(inputs[0]))
    states = [*tiny(rows[:2], output_hidden_states=True).hidden_states[:2], *between]
    states.append(between[-1] + tiny.model.layers[-1].mlp(tiny.model.layers[-1].post_attention_layernorm(between[-1])))
    total, count = torch.zeros(64, 64, dtype=torch.float64), 0
    for x in torch.cat([state.flatten(0, 1) for state in states]).double():
        x = x / (x.square().mean() + 1e-6).sqrt()
        total += torch.outer(x, x).detach()
        count += 1
    torch.testing.assert_close(spectral_width.covariance(tiny, rows[:2]), total / count, atol=1e-4, rtol=1e-4)


def test_what_it_cannot_do_is_refused(tiny, rows, given):
    with pytest.raises(UserError, match="of pretrain/base's 64 directions .* in steps of 64 all stay"):
        spectral_width.SpectralWidth(**P).prune(tiny, given(rows))
    with pytest.raises(UserError, match="40 calibration tokens can't tell 64 directions apart"):
        spectral_width.SpectralWidth(**P).prune(tiny, given(rows[:1, :40]))
    tiny.config.model_type = "gemma2"
    with pytest.raises(UserError, match="pretrain/base is a gemma2; spectral_width can narrow: llama, mistral"):
        spectral_width.SpectralWidth(**P).prune(tiny, given(rows))
