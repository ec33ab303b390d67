"""Somebody else's model: a folder, a GGUF file; what is not what params say is refused."""

import shutil
from pathlib import Path

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


def test_whose_weights_they_are_stays_with_them_into_a_file_and_out_of_it(model_folder, tokenizer, tmp_path):
    """As the card of a folder says, as a GGUF says, or as params do; never the path on this machine."""
    from gguf import GGUFReader

    folder = tmp_path / "Apple-1.5B"
    shutil.copytree(model_folder, folder)
    assert technique(folder).build(tokenizer).config.origin == {"name": "Apple-1.5B"}
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [fruit]\n---\n# Apple\n")
    model = technique(folder).build(tokenizer)
    models.save(model, tokenizer, tmp_path / "model")
    exporter = gguf.GGUF(method="gguf", model="a/b", tokens="a/b", type="F16")
    exporter.write(models.load(tmp_path / "model"), tokenizer, tmp_path, torch.empty(0, 0))
    fields = GGUFReader(tmp_path / "model.gguf").fields
    said = {name: fields[name].contents() for name in ("general.license", "general.base_model.0.name")}
    assert said == {"general.license": "apache-2.0", "general.base_model.0.name": "Apple-1.5B"}
    assert str(tmp_path) not in str({name: field.contents() for name, field in fields.items()})
    assert technique(tmp_path / "model.gguf").build(tokenizer).config.origin["license"] == "apache-2.0"
    (folder / "README.md").write_text("---\nlicense: [mit, 'cc0-1.0']\n---\n")
    assert technique(folder).build(tokenizer).config.origin["license"] == "mit, cc0-1.0"
    (folder / "README.md").write_text("---\nlicense: {mit\n---\n")
    assert technique(folder).build(tokenizer).config.origin == {"name": "Apple-1.5B"}
    named = technique(folder).model_copy(update={"licence": "mit"})
    assert named.build(tokenizer).config.origin == {"name": "Apple-1.5B", "license": "mit"}


def summary_of(folder, tokenizer, capsys, **more):
    external = {"source": str(folder), "sha256": files.digest(Path(folder))}
    given = {"method": "pretrained", "tokens": "tokenize/bpe", "external": external, **more}
    model = pretrained.Pretrained.model_validate(given).build(tokenizer)
    return model, capsys.readouterr().out.splitlines()[-1]


def test_one_line_says_what_was_taken_in(tokenizer, tmp_path, capsys):
    from benchmarks import _families

    _families.make("qwen2", tokenizer, vocab_size=640).half().save_pretrained(tmp_path / "theirs")
    model, said = summary_of(tmp_path / "theirs", tokenizer, capsys, dtype="stored")
    assert said.startswith(f"{tmp_path / 'theirs'}: qwen2 of {model.num_parameters():,} parameters, ")
    for part in ("640 rows for 512 tokens", "a head that is the embedding", "answers end at <|end|>", "float16", "512"):
        assert part in said


def test_a_training_wants_32_bits(model_folder):
    training = {"steps": 1, "batch_size": 1, "lr": 0.1}
    external = {"source": str(model_folder), "sha256": files.digest(model_folder)}
    given = {"method": "pretrained", "tokens": "tokenize/bpe", "external": external, "training": training}
    with pytest.raises(ValidationError, match="in 16 bits small steps of a training are lost"):
        pretrained.Pretrained.model_validate(given | {"dtype": "stored"})


def test_more_tokens_than_rows_are_refused(tokenizer, tmp_path, llama):
    llama(len(tokenizer) - 1).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="theirs has rows for 511 tokens, the tokenizer of 'tokenize/bpe' has 512"):
        technique(tmp_path / "theirs").build(tokenizer)


def test_an_encoder_is_refused_because_it_looks_ahead(tokenizer, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForMaskedLM(BertConfig(vocab_size=512, initializer_range=0.2, **small)).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="theirs looks at later tokens: this bert is no causal language model"):
        technique(tmp_path / "theirs").build(tokenizer)


def test_weights_that_compute_no_numbers_are_refused(tokenizer, tmp_path, tiny):
    tiny.model.norm.weight.data[0] = torch.nan
    tiny.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="theirs computes no numbers in torch.float32"):
        technique(tmp_path / "theirs").build(tokenizer)


def test_an_adapter_is_merged_into_the_base_that_is_given(tokenizer, tmp_path, tiny, monkeypatch, capsys):
    from stages.lib.store import adapters

    monkeypatch.chdir(tmp_path)
    models.save(tiny, tokenizer, tmp_path / "base")
    wrapped = adapters.wrap(models.load(tmp_path / "base"), adapters.LoRA(rank=2)).eval()
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    wrapped.save_pretrained("theirs")
    base = {"source": "base", "sha256": files.digest(tmp_path / "base")}
    model, _ = summary_of("theirs", tokenizer, capsys, base=base)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, wrapped(ids).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="base is a whole model, no adapter of base: leave out `base`"):
        summary_of("base", tokenizer, capsys, base=base)


def test_files_that_are_no_model_are_refused_before_work(model_folder):
    file = model_folder / "model.safetensors"
    with pytest.raises(ValidationError, match="is neither a folder nor a .gguf file: name the folder it lies in"):
        External(source=str(file), sha256=files.digest(file))
