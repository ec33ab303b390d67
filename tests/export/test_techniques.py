"""What every export technique must hold, whatever its format. A new file in stages/export/ is picked up here."""

from importlib import import_module

import pytest
import torch

from stages.export import _dense
from stages.export.__main__ import each, footprint
from stages.lib import artefacts, losses, models, params, runtimes

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}
SETTINGS = {"gguf": {"type": "Q8_0"}}  # what a technique needs beyond its parents


@pytest.fixture(params=params.techniques("export"))
def technique(request):
    return import_module(f"stages.export.{request.param}")


def write(technique, model_folder, folder):
    method = technique.__name__.rsplit(".", 1)[1]
    p = technique.Params(method=method, **PARENTS, **SETTINGS.get(method, {}))
    folder.mkdir()
    technique.write(_dense.load(model_folder), models.load_tokenizer(model_folder), folder, p)
    return folder


def test_names_its_source(technique):
    assert "github.com/" in technique.__doc__ or "arXiv:" in technique.__doc__


def test_reads_back_as_the_same_model(technique, model_folder, rows, tmp_path):
    export = runtimes.open_runtime(write(technique, model_folder, tmp_path / "export"))
    source = runtimes.open_runtime(model_folder)
    seen = losses.compare(each(source), each(export), rows[:4], batch=1)
    assert 0 <= seen["kl"] < 1e-3
    assert seen["same_top"] > 0.9  # untrained: many near ties
    assert seen["loss_after"] == pytest.approx(seen["loss_before"], abs=0.01)
    assert export.size()[0] == source.size()[0] == models.load(model_folder).num_parameters()


def test_reads_back_with_the_same_tokenizer(technique, model_folder, texts, tmp_path):
    export = runtimes.open_runtime(write(technique, model_folder, tmp_path / "export"))
    source = models.load_tokenizer(model_folder)
    assert export.tokenizer.encode(texts[0]) == source.encode(texts[0])
    assert export.tokenizer.chat_template == source.chat_template


def test_is_smaller_than_training_floats(technique, model_folder, tmp_path):
    folder = write(technique, model_folder, tmp_path / "export")
    seen = footprint(runtimes.open_runtime(folder), folder)
    assert seen["bits_per_weight"] < 16.1
    assert seen["bytes"] < (model_folder / "model.safetensors").stat().st_size


def test_same_input_same_bytes(technique, model_folder, tmp_path):
    one, two = (write(technique, model_folder, tmp_path / name) for name in ("one", "two"))
    assert artefacts.digest(one) == artefacts.digest(two)


def test_pruned_zeros_stay_zeros(technique, model_folder, tmp_path):
    """A pruned model is stored dense; an export must not blur its zeros."""
    pruned = models.load(model_folder)
    with torch.no_grad():
        for layer in pruned.model.layers:
            layer.mlp.down_proj.weight[:, :256] = 0
    models.save(pruned, models.load_tokenizer(model_folder), tmp_path / "pruned")
    folder = write(technique, tmp_path / "pruned", tmp_path / "export")
    for weight in stored(folder):
        assert (weight[:, :256] == 0).all() and (weight[:, 256:] != 0).any()


def stored(folder):
    """The down projections, as the file holds them."""
    if not (folder / "model.gguf").exists():
        return [layer.mlp.down_proj.weight.detach().numpy() for layer in models.load(folder).model.layers]
    from gguf import GGUFReader, dequantize

    tensors = GGUFReader(folder / "model.gguf").tensors
    return [dequantize(t.data, t.tensor_type) for t in tensors if "ffn_down" in t.name]
