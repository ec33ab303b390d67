"""Every family of benchmarks/_families.py: packed rows against each example alone by transformers' own forward."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks._families import FAMILIES, LENGTHS, WINDOW, make, packed_batch
from stages.distill.parts import layer_pairs
from stages.lib.nets import anatomy, attention, packed
from stages.lib.store import models
from stages.lib.text.packing import IGNORE

assert max(map(max, LENGTHS)) > 2 * WINDOW


@pytest.fixture
def batch():
    return packed_batch(LENGTHS)


def alone(model, batch, **more):
    """transformers' output for every example by itself, and where in it a learnt token comes next."""
    for ids, labels, lengths in zip(batch["ids"], batch["labels"], LENGTHS, strict=True):
        begins = torch.tensor([0, *lengths]).cumsum(0).tolist()
        for begin, length in zip(begins, lengths, strict=False):
            own = slice(begin, begin + length)
            yield model(input_ids=ids[None, own], use_cache=False, **more), labels[own][1:] != IGNORE


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_models_own_forward(family, batch, tokenizer):
    """Scaled, capped and multiplied as the family does, and no example sees another."""
    model = make(family, tokenizer)
    with torch.no_grad():
        expected = torch.cat([output.logits[0, :-1][learnt] for output, learnt in alone(model, batch)])
        logits, tokens = packed.logits(model, batch)
        loss = packed.loss(model, batch)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-4)
    assert torch.equal(tokens, batch["labels"][batch["labels"] != IGNORE])
    assert loss.item() == pytest.approx(F.cross_entropy(expected, tokens).item(), abs=1e-5)
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "falcon_h1"])
def test_gradients_too(family, batch, tokenizer):
    model = make(family, tokenizer)
    twin = copy.deepcopy(model)
    packed.loss(model, batch).backward()
    logits = torch.cat([output.logits[0, :-1][learnt] for output, learnt in alone(twin, batch)])
    F.cross_entropy(logits, batch["labels"][batch["labels"] != IGNORE]).backward()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_inside_are_those_of_each_example(family, batch, tokenizer):
    model = make(family, tokenizer)
    with torch.no_grad():
        inside = layer_pairs.look_inside(model, batch)
        parts = list(alone(model, batch, output_hidden_states=True))
    for layer, states in enumerate(inside.states):
        expected = torch.cat([output.hidden_states[layer][0, :-1][learnt] for output, learnt in parts])
        torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-3)
    assert len(inside.states) == model.config.num_hidden_layers + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_trains_in_mixed_precision_as_it_is_read(family, batch, tokenizer, tmp_path):
    """The loss is about that of 32 bits, and what counts gets a gradient."""
    models.save(make(family, tokenizer), tokenizer, tmp_path / "model")
    model = models.load(tmp_path / "model")
    exact = packed.loss(model, batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = packed.loss(model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(exact, abs=0.1)  # a token may go to another expert
    gradients = [weight.grad for weight in model.parameters()]
    assert sum(each is not None and bool(each.isfinite().all()) for each in gradients) > 0.9 * len(gradients)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_faster_attention_leaves_nothing_out(family, batch, tokenizer, tmp_path):
    """Caps on logits, sinks, windows: the model as it is opened against transformers' plain attention."""
    models.save(make(family, tokenizer), tokenizer, tmp_path / "model")
    model = models.load(tmp_path / "model")
    logits = model(batch["ids"]).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits, model(batch["ids"]).logits, atol=1e-4, rtol=1e-3)


def test_networks_that_are_not_told_positions_read_one_example_a_row(batch, tokenizer):
    """Bloom's attention knows distances only, so a packed row would be one text to it."""
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=512, hidden_size=32, n_layer=2, n_head=4)).eval()
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    assert not attention.separable(model)
    with torch.no_grad():
        expected = torch.cat([output.logits[0, :-1][learnt] for output, learnt in alone(model, batch)])
        torch.testing.assert_close(packed.logits(model, batch)[0], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", [*anatomy.PLAIN, "gemma2", "gemma3", "phi3", "olmo2", "cohere2", "gpt_neox"])
@torch.no_grad()
def test_scales_between_what_writes_and_what_reads_cancel(family, batch, tokenizer):
    """Every pair that anatomy names, with scales of its own; what else read there would show."""
    model = make(family, tokenizer, num_key_value_heads=4)
    before = model(batch["ids"]).logits
    random = torch.Generator().manual_seed(0)
    assert anatomy.feeds(model)
    for block in anatomy.blocks(model):
        modules: dict[str, Any] = {name.rsplit(".", 1)[-1]: module for name, module in block.named_modules()}
        for writer, readers in anatomy.feeds(model):
            scale = 2 ** torch.randn(modules[readers[0]].in_features, generator=random)
            written, offset = modules[writer], 1 if family.startswith("gemma") and "norm" in writer else 0
            rows = written.weight[-len(scale) :]  # of two things in one matrix the second
            rows.copy_((rows + offset) / scale.view(-1, *[1] * (rows.ndim - 1)) - offset)
            if getattr(written, "bias", None) is not None:
                written.bias[-len(scale) :] /= scale
            for reader in readers:
                modules[reader].weight *= scale
    torch.testing.assert_close(model(batch["ids"]).logits, before, atol=1e-3, rtol=1e-3)
