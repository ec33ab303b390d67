"""The importance matrix: its numbers from the formula, its file as llama.cpp reads it, and what it is for."""

import struct

import pytest
import torch

from stages.export import gguf
from stages.export.__main__ import each
from stages.export.parts import gguf_file, importance_matrix
from stages.lib.nets import losses
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
    means = importance_matrix.measure(net, rows)
    x_MI = net.model.layers[0].input_layernorm(net.model.embed_tokens(rows)).flatten(0, 1).double()
    expected_I = torch.stack([sum(x * x for x in column) / len(column) for column in x_MI.T[:5]])
    torch.testing.assert_close(means["model.layers.0.self_attn.q_proj"][:5], expected_I)
    assert "lm_head" not in means and len(means) == 14


def test_file_is_llama_cpps(tiny, tmp_path):
    importance_matrix.save(
        {"model.layers.1.mlp.down_proj": torch.tensor([1.0, 0.5])}, gguf_file.renamer(tiny), tmp_path / "i.dat"
    )
    name = b"blk.1.ffn_down.weight"
    expected = struct.pack("<ii", 1, len(name)) + name + struct.pack("<iiff", 1, 2, 1.0, 0.5)
    assert (tmp_path / "i.dat").read_bytes() == expected


def export(net, tokenizer, folder, type, rows=None):
    folder.mkdir()
    p = gguf.Params(method="gguf", type=type, calibration=None if rows is None else ROWS, **PARENTS)
    gguf.write(net, tokenizer, folder, p, *([] if rows is None else [rows]))
    return open_runtime(folder)


@pytest.mark.parametrize("type", ["Q2_K", "Q3_K_S", "IQ3_XXS"])
def test_quantizing_with_it_loses_less(model_folder, tokenizer, rows, tmp_path, type):
    net = uneven(model_folder)
    without = export(net, tokenizer, tmp_path / "without", type)
    within = export(net, tokenizer, tmp_path / "with", type, rows)
    assert without.size() == within.size()
    plain, minded = (
        losses.compare(models.logits(net), each(file), rows[:8], batch=1)["kl"] for file in (without, within)
    )
    assert minded < 0.9 * plain


def test_its_file_does_not_stay_and_its_path_is_not_in_the_model(model_folder, tokenizer, rows, tmp_path):
    export(models.load(model_folder), tokenizer, tmp_path / "q", "IQ2_XXS", rows)
    assert not list((tmp_path / "q").glob("*.dat"))
    assert b"importance" not in (tmp_path / "q" / "model.gguf").read_bytes()


def test_types_that_are_noise_without_it_ask_for_it():
    with pytest.raises(ValueError, match="IQ2 types need calibration rows"):
        gguf.Params(method="gguf", type="IQ2_XS", **PARENTS)
    assert gguf.Params(method="gguf", type="IQ3_S", **PARENTS).calibration is None
