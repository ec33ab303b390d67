"""What every quantization technique must hold, whatever its method. A new file in stages/quantize/ is picked up here."""

from importlib import import_module

import pytest
import torch

from stages.lib import artefacts, models, params
from stages.quantize import _compressed


@pytest.fixture(params=params.techniques("quantize"))
def technique(request):
    return import_module(f"stages.quantize.{request.param}")


@pytest.fixture
def net(model_folder):
    return models.load(model_folder)


def quantized(technique, net, rows):
    name = technique.__name__.rsplit(".", 1)[1]
    p = technique.Params(method=name, model="pretrain/base", tokens="tokenize/bpe")
    net = technique.quantize(net, rows, p)
    _compressed.round_rest(net, torch.float16)
    return net


@torch.no_grad()
def logits(net, rows):
    return net(rows).logits


def test_names_its_source(technique):
    assert "arXiv:" in technique.__doc__ or "doi:" in technique.__doc__


def test_what_is_reloaded_is_what_was_in_memory(technique, net, rows, tokenizer, tmp_path):
    expected = logits(quantized(technique, net, rows), rows)
    models.save(_compressed.pack(net, torch.float16), tokenizer, tmp_path / "model")
    assert torch.equal(logits(models.load(tmp_path / "model"), rows), expected)


def test_changes_little_but_something(technique, net, rows):
    before = logits(net, rows).log_softmax(-1)
    after = logits(quantized(technique, net, rows), rows).log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    assert 0 < kl < 0.1


def test_the_same_bytes_twice_and_nothing_volatile(technique, model_folder, rows, tokenizer, tmp_path):
    for name in ("once", "twice"):
        net = quantized(technique, models.load(model_folder), rows)
        models.save(_compressed.pack(net, torch.float16), tokenizer, tmp_path / name)
    assert artefacts.digest(tmp_path / "once") == artefacts.digest(tmp_path / "twice")
    assert {file.name for file in (tmp_path / "once").iterdir()} - {
        file.name for file in model_folder.iterdir()
    } == set()
    assert str(tmp_path) not in (tmp_path / "once" / "config.json").read_text()


def test_embedding_and_head_stay(technique, net, rows):
    embedding = net.get_input_embeddings().weight.clone()
    net = quantized(technique, net, rows)
    assert torch.equal(net.get_input_embeddings().weight, embedding.half().float())
    assert net.lm_head.weight is net.get_input_embeddings().weight
    assert not hasattr(net.lm_head, "quantization_scheme")
