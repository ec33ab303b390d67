"""Somebody else's model: a folder, a GGUF file; what is not what params say is refused."""

import pytest
import torch
from pydantic import ValidationError

from stages.export import gguf
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import models
from stages.lib.store.hub import External
from stages.pretrain import pretrained


def technique(path, sha256=None):
    external = {"source": str(path), "sha256": sha256 or files.digest(path)}
    return pretrained.Pretrained(method="pretrained", tokens="tokenize/bpe", external=external)


def test_a_gguf_file_gives_the_weights_it_was_written_from(model_folder, tokenizer, tmp_path):
    model = models.load(model_folder)
    exporter = gguf.GGUF(method="gguf", model="a/b", tokens="a/b", type="F16")
    exporter.write(model, tokenizer, tmp_path, torch.empty(0, 0))
    back = technique(tmp_path / "model.gguf").build(tokenizer)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(back(ids).logits, model(ids).logits, atol=2e-2, rtol=0)


def test_a_source_that_changed_is_refused(model_folder, tokenizer):
    with pytest.raises(UserError, match="it changed"):
        technique(model_folder, "0" * 64).build(tokenizer)


def test_what_is_not_pinned_is_refused_and_says_how(model_folder):
    with pytest.raises(ValidationError, match=files.digest(model_folder)):
        External(source=str(model_folder))
    with pytest.raises(ValidationError, match="name the commit to take as `revision`"):
        External(source="org/model")
    with pytest.raises(ValidationError, match="neither a local folder"):
        External(source="no/such/place")


def test_a_pinned_file_that_is_not_there_yet_passes_the_check_but_not_the_stage(tokenizer, tmp_path):
    later = technique(tmp_path / "later.gguf", "0" * 64)
    with pytest.raises(UserError, match="later.gguf is missing; put it there"):
        later.build(tokenizer)


def test_shuffled_channels_are_the_same_function_but_no_block_keeps_its_weights(model_folder):
    plain = models.load(model_folder)
    shuffled = pretrained.shuffle(models.load(model_folder), seed=1)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(shuffled(ids).logits, plain(ids).logits, atol=1e-4, rtol=0)
    for name, weight in shuffled.state_dict().items():
        before = plain.state_dict()[name]
        if weight.ndim == 2:
            assert not torch.equal(weight[:, :32].sort().values, before[:, :32].sort().values), name
        assert torch.equal(weight.flatten().sort().values, before.flatten().sort().values), name


def test_a_seed_is_an_order(model_folder):
    one, same, other = (pretrained.shuffle(models.load(model_folder), seed).state_dict() for seed in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_what_cannot_be_shuffled_is_refused():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**small, num_attention_heads=2, num_key_value_heads=2))
    with pytest.raises(UserError, match="llama without biases, not this qwen2"):
        pretrained.shuffle(model, seed=0)
