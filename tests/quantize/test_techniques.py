"""What every quantization technique must hold, whatever its method; a new file in stages/quantize/ is picked up."""

import sys

import pytest
import torch

from stages.lib.frame import files, params
from stages.lib.store import models
from stages.quantize.parts import compressed


@pytest.fixture(scope="module", params=params.techniques("quantize"))
def technique(request):
    kind = params.technique_class("quantize", request.param)
    return kind.model_validate({"method": request.param, "model": "pretrain/base", "tokens": "tokenize/bpe"})


@pytest.fixture(scope="module")
def parent(technique, model_folder, ternary_folder):
    return ternary_folder if technique.method == "bitnet" else model_folder


@pytest.fixture(scope="module")
def ids(texts, tokenizer):
    return torch.tensor([tokenizer.encode(text)[:64] for text in texts[:4]])


def quantize(technique, folder, ids):
    net = technique.quantize(models.load(folder), ids)
    compressed.round_rest(net, torch.float16)
    return net


@pytest.fixture(scope="module")
def once(technique, parent, ids, tokenizer, tmp_path_factory):
    """Logits in memory, and the folder written from it."""
    net, folder = quantize(technique, parent, ids), tmp_path_factory.mktemp("quantized") / "model"
    expected = logits(net, ids)
    models.save(compressed.pack(net, torch.float16), tokenizer, folder)
    return expected, folder


@torch.no_grad()
def logits(net, ids):
    return net(ids).logits


def test_names_its_source(technique):
    about = sys.modules[type(technique).__module__].__doc__
    assert "arXiv:" in about or "doi:" in about


def test_what_is_reloaded_is_what_was_in_memory(once, ids):
    expected, folder = once
    assert torch.equal(logits(models.load(folder), ids), expected)


def test_changes_little_but_something(once, parent, ids):
    before, after = logits(models.load(parent), ids).log_softmax(-1), once[0].log_softmax(-1)
    kl = (before.exp() * (before - after)).sum(-1).mean()
    assert 0 < kl < 0.1


def test_the_same_bytes_twice_and_nothing_volatile(technique, once, parent, ids, tokenizer, tmp_path):
    net = quantize(technique, parent, ids)
    models.save(compressed.pack(net, torch.float16), tokenizer, tmp_path / "twice")
    assert files.digest(tmp_path / "twice") == files.digest(once[1])
    assert {file.name for file in once[1].iterdir()} == {file.name for file in parent.iterdir()}
    assert str(parent) not in (once[1] / "config.json").read_text()


def test_embedding_and_head_stay(once, parent):
    dense, net = models.load(parent), models.load(once[1])
    embedding = net.get_input_embeddings().weight
    assert torch.equal(embedding, dense.get_input_embeddings().weight.half().float())
    assert net.lm_head.weight is embedding
    assert not hasattr(net.lm_head, "quantization_scheme")
