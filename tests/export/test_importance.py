"""The importance matrix: its numbers from the formula, and what it is for."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from benchmarks import _families
from stages.export import gguf
from stages.export.parts import gguf_types, importance_matrix
from stages.lib.nets import anatomy, losses
from stages.lib.runtimes import libllama
from stages.lib.runtimes.base import logits
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}
ROWS = {"rows": 16, "seed": 0}


def uneven(folder):
    """Channels of very different size, as in trained models."""
    net = models.load(folder)
    with torch.no_grad():
        for layer in net.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight *= torch.logspace(-1, 1, 256)[
                    torch.randperm(256, generator=torch.Generator().manual_seed(0))
                ]
    return net


@torch.no_grad()
def test_is_the_mean_square_of_every_input(model_folder, rows):
    net = models.load(model_folder)
    names = {f"{name}.weight": [name] for name in anatomy.matrices(net)}
    means = importance_matrix.measure(net, rows, names)
    x_MI = net.model.layers[0].input_layernorm(net.model.embed_tokens(rows)).flatten(0, 1).double()
    expected_I = torch.stack([sum(x * x for x in column) / len(column) for column in x_MI.T[:5]])
    found_I = torch.from_numpy(means["model.layers.0.self_attn.q_proj"][:5])
    torch.testing.assert_close(found_I, expected_I.float())
    assert "lm_head" not in means and len(means) == 14


@torch.no_grad()
def test_every_expert_has_the_tokens_that_it_read(tokenizer, rows):
    """Of Mixtral's first block, whose router reads what the experts read; one that nobody reads has ones."""
    net = _families.make("mixtral", tokenizer)
    mlp, seen = net.model.layers[0].mlp, []
    mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    net(rows)
    chosen = (seen[0] @ mlp.gate.weight.T).topk(2).indices
    means = importance_matrix.measure(net, rows, {})
    assert means["blk.0.ffn_gate_exps.weight"].shape == (4, 64)
    assert means["blk.0.ffn_down_exps.weight"].shape == (4, 128)
    for expert in range(4):
        read = seen[0][(chosen == expert).any(-1)]
        expected = read.double().square().mean(0).float() if len(read) else torch.ones(64)
        for part in ("gate", "up"):
            found = torch.from_numpy(means[f"blk.0.ffn_{part}_exps.weight"][expert])
            torch.testing.assert_close(found, expected)


def export(net, tokenizer, folder, type, rows=None):
    folder.mkdir()
    technique = gguf.GGUF(method="gguf", type=type, calibration=None if rows is None else ROWS, **PARENTS)
    technique.write(net, tokenizer, folder, torch.empty(0, 0) if rows is None else rows)
    return open_runtime(folder)


@pytest.mark.parametrize("type", ["Q2_K", "Q3_K_S", "IQ3_XXS"])
def test_quantizing_with_it_loses_less(model_folder, tokenizer, rows, tmp_path, type):
    net = uneven(model_folder)
    without = export(net, tokenizer, tmp_path / "without", type)
    within = export(net, tokenizer, tmp_path / "with", type, rows)
    assert without.size() == within.size()
    plain, minded = (losses.compare(models.logits(net), logits(file), rows[:8])["kl"] for file in (without, within))
    assert minded < 0.9 * plain


def test_nothing_else_stays(model_folder, tokenizer, rows, tmp_path):
    export(models.load(model_folder), tokenizer, tmp_path / "q", "IQ2_XXS", rows)
    files = {file.name for file in (tmp_path / "q").iterdir() if file.suffix != ".json"}
    assert files == {"Modelfile", "chat_template.jinja", "model.gguf"}


def test_types_that_are_noise_without_it_ask_for_it():
    with pytest.raises(ValueError, match="IQ2 types need calibration rows"):
        gguf.GGUF(method="gguf", type="IQ2_XS", **PARENTS)
    assert gguf.GGUF(method="gguf", type="IQ3_S", **PARENTS).calibration is None


@pytest.mark.parametrize(("type", "format"), gguf_types.FORMATS.items())
def test_what_takes_it_rounds_otherwise_with_it_and_nothing_else_does(type, format):
    random = np.random.default_rng(0)
    weight, importance = random.normal(size=(8, 256)).astype(np.float32), np.logspace(-2, 2, 256, dtype=np.float32)
    kind, needed = GGMLQuantizationType[format.type], format.calibration == "needed"
    without = libllama.quantize(weight, kind, np.ones_like(importance) if needed else None)
    assert (libllama.quantize(weight, kind, importance) == without).all() == (format.calibration == "useless")
    if format.calibration == "useless":
        with pytest.raises(ValueError, match=f"{type} rounds the same with calibration and without"):
            gguf.GGUF(method="gguf", type=type, calibration=ROWS, **PARENTS)
