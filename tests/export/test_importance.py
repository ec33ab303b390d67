"""The importance matrix: its numbers from the formula, its file as llama.cpp reads it, and what it is for."""

import struct

import pytest
import torch

from stages.export import gguf
from stages.export.parts import gguf_file, gguf_vocabulary, importance_matrix
from stages.lib.nets import losses
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
    technique = gguf.GGUF(method="gguf", type=type, calibration=None if rows is None else ROWS, **PARENTS)
    technique.write(net, tokenizer, folder, torch.empty(0, 0) if rows is None else rows)
    return open_runtime(folder)


@pytest.mark.parametrize("type", ["Q2_K", "Q3_K_S", "IQ3_XXS"])
def test_quantizing_with_it_loses_less(model_folder, tokenizer, rows, tmp_path, type):
    net = uneven(model_folder)
    without = export(net, tokenizer, tmp_path / "without", type)
    within = export(net, tokenizer, tmp_path / "with", type, rows)
    assert without.size() == within.size()
    plain, minded = (
        losses.compare(models.logits(net), logits(file), rows[:8], batch=1)["kl"] for file in (without, within)
    )
    assert minded < 0.9 * plain


def test_its_file_does_not_stay_and_its_path_is_not_in_the_model(model_folder, tokenizer, rows, tmp_path):
    export(models.load(model_folder), tokenizer, tmp_path / "q", "IQ2_XXS", rows)
    assert not list((tmp_path / "q").glob("*.dat"))
    assert b"importance" not in (tmp_path / "q" / "model.gguf").read_bytes()


def test_types_that_are_noise_without_it_ask_for_it():
    with pytest.raises(ValueError, match="IQ2 types need calibration rows"):
        gguf.GGUF(method="gguf", type="IQ2_XS", **PARENTS)
    assert gguf.GGUF(method="gguf", type="IQ3_S", **PARENTS).calibration is None


@pytest.mark.parametrize(
    "type",
    [
        pytest.param(type, marks=pytest.mark.slow if type.startswith("IQ3") else ())
        for type, format in gguf.FORMATS.items()
        if format.calibration == "useful"
    ],
)
def test_every_type_that_takes_it_stores_other_weights_with_it(model_folder, tokenizer, rows, tmp_path, type):
    net = uneven(model_folder)
    for name, calibration in (("without", None), ("within", rows)):
        export(net, tokenizer, tmp_path / name, type, calibration)
    without, within = tensors(tmp_path / "without"), tensors(tmp_path / "within")
    assert without.keys() == within.keys()
    assert any((without[name] != within[name]).any() for name in without)


def test_q8_0_does_not_look_at_it_so_it_is_refused(model_folder, tokenizer, rows, tmp_path):
    with pytest.raises(ValueError, match="Q8_0 rounds the same with calibration and without"):
        gguf.GGUF(method="gguf", type="Q8_0", calibration=ROWS, **PARENTS)
    net = uneven(model_folder)
    means = importance_matrix.measure(net, rows)
    importance_matrix.save(means, gguf_file.renamer(net), tmp_path / "importance.dat")
    vocabulary = gguf_vocabulary.read(tokenizer, len(tokenizer))
    gguf_file.write_file(net, vocabulary, tmp_path / "full.gguf", "F32")
    found = []
    for importance in (None, tmp_path / "importance.dat"):
        gguf_file.quantize(tmp_path / "full.gguf", tmp_path / "model.gguf", "Q8_0", [], importance)
        found.append(tensors(tmp_path))
    assert all((found[0][name] == found[1][name]).all() for name in found[0])


def tensors(folder):
    from gguf import GGUFReader

    return {t.name: t.data.copy() for t in GGUFReader(folder / "model.gguf").tensors}
