"""Adapters on every family: trained where said, the same after saving, merged into what they were trained on."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from benchmarks import _families
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import adapters, models
from stages.lib.store.hub import External
from stages.quantize.nf4 import NF4

IDS = torch.arange(3, 43)[None]
BASE = Path("artifacts/pretrain/base/model")
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
FEED_FORWARD = {"gate_proj", "up_proj", "down_proj"}
LAYERS = {
    "llama": ATTENTION | FEED_FORWARD,
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "gpt2": {"c_attn", "c_proj", "c_fc"},
    "gpt_neox": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
    "qwen3_moe": ATTENTION,
    "deepseek_v3": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    "mamba2": {"in_proj"},
    "falcon_h1": ATTENTION | FEED_FORWARD | {"in_proj"},
}


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def trained(model, p=adapters.LoRA(rank=4), sha256=None):  # noqa: B008 (frozen)
    wrapped = adapters.wrap(model, p, sha256).eval()
    torch.manual_seed(0)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return wrapped


@pytest.mark.parametrize("family", _families.FAMILIES)
def test_what_is_wrapped_saved_published_and_merged_says_one_thing(family, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.save(_families.make(family, tokenizer), tokenizer, BASE)
    net = trained(models.load(BASE), sha256=files.digest(BASE))
    if family in LAYERS:
        assert net.peft_config["default"].target_modules == LAYERS[family]
    said, before = logits(net), logits(models.load(BASE))
    assert (said - before).abs().max() > 0.1
    folder = Path("artifacts/export/adapter/model")
    adapters.save(net, folder)
    torch.testing.assert_close(logits(adapters.load(folder)), said)
    adapters.publish(folder)
    torch.testing.assert_close(logits(adapters.load(folder)), said)
    pinned = External(source=str(BASE), sha256=files.digest(BASE))
    merged = adapters.merged(folder, "theirs", pinned, "float32")
    torch.testing.assert_close(logits(merged), said, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(logits(adapters.merge(net, adapters.LoRA())), said, atol=2e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dora", [False, True])
def test_beside_weights_in_4_bits_it_is_the_quantized_model_and_merged_the_same(dora, tokenizer, tmp_path):
    models.save(_families.make("llama", tokenizer), tokenizer, tmp_path)
    rounded = NF4(method="nf4", model="a/b", tokens="a/b").quantize(models.load(tmp_path), IDS)
    p = adapters.LoRA(rank=4, nf4=True, dora=dora)
    torch.testing.assert_close(logits(adapters.wrap(models.load(tmp_path), p).eval()), logits(rounded))
    net = trained(models.load(tmp_path), p)
    stored = [w for name, w in net.named_parameters() if "layers" in name and "lora" not in name and w.ndim == 2]
    assert {w.dtype for w in stored} == {torch.uint8}
    said = logits(net)
    assert (said - logits(rounded)).abs().max() > 0.1
    merged = adapters.merge(net, p)
    torch.testing.assert_close(logits(merged), said, atol=2e-3, rtol=1e-3)
    assert merged.state_dict().keys() == models.load(tmp_path).state_dict().keys()
    assert {w.dtype for w in merged.parameters()} == {torch.float32}


def test_what_has_no_linear_layers_is_not_packed(tokenizer):
    with pytest.raises(UserError, match="lora.nf4 wants linear layers of whole blocks of 64 inputs; .* of this gpt2"):
        adapters.wrap(_families.make("gpt2", tokenizer), adapters.LoRA(nf4=True))


@torch.no_grad()
@pytest.mark.parametrize("given", [{}, {"rslora": True}, {"dora": True}, {"dora": True, "rslora": True}], ids=str)
def test_what_is_added_is_the_papers_formula(given, tokenizer, tmp_path, monkeypatch):
    """W + s B A with s = alpha / r, or alpha / sqrt(r); of DoRA each output keeps a length of its own."""
    monkeypatch.chdir(tmp_path)
    models.save(_families.make("llama", tokenizer), tokenizer, BASE)
    p = adapters.LoRA(rank=4, alpha=6, **given)
    net = trained(models.load(BASE), p, files.digest(BASE))
    layer = net.base_model.model.model.layers[0].self_attn.q_proj
    if p.dora:
        layer.lora_magnitude_vector["default"].weight.mul_(1.5)
    moved = (
        layer.base_layer.weight
        + 6 / (2 if p.rslora else 4) * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    if p.dora:
        moved = 1.5 * layer.base_layer.weight.norm(dim=1, keepdim=True) * moved / moved.norm(dim=1, keepdim=True)
    said = logits(net)
    adapters.save(net, tmp_path / "saved")
    torch.testing.assert_close(logits(adapters.load(tmp_path / "saved")), said)
    merged = adapters.merge(net, p)
    torch.testing.assert_close(merged.model.layers[0].self_attn.q_proj.weight, moved, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits(merged), said, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["mamba2", "falcon_h1", "gpt2", "qwen3_next"])
def test_every_adapter_gets_a_gradient(family, tokenizer):
    net = trained(_families.make(family, tokenizer))
    net(IDS).logits.square().mean().backward()
    assert not [name for name, weight in net.named_parameters() if weight.requires_grad and not weight.grad.any()]


def test_only_the_named_layers_are_adapted(tokenizer):
    net = trained(_families.make("llama", tokenizer), adapters.LoRA(rank=4, targets=["q_proj", "v_proj"]))
    adapted = {name.split(".")[-4] for name, weight in net.named_parameters() if weight.requires_grad}
    assert adapted == {"q_proj", "v_proj"}


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(tokenizer):
    with pytest.raises(UserError, match="names 'q_proj', no linear layer of this gpt2; allowed: .* c_attn, c_fc"):
        adapters.wrap(_families.make("gpt2", tokenizer), adapters.LoRA(targets=["q_proj"]))
    with pytest.raises(UserError, match="names 'lm_head', no linear layer"):
        adapters.wrap(_families.make("llama", tokenizer), adapters.LoRA(targets=["lm_head"]))
    with pytest.raises(ValidationError):
        adapters.LoRA.model_validate({"targets": "all"})


def test_experts_that_stay_as_they_are_are_said(tokenizer, capsys):
    adapters.wrap(_families.make("qwen3_moe", tokenizer), adapters.LoRA())
    assert "lora: fused experts (196,608 weights)" in capsys.readouterr().out


@pytest.fixture
def theirs(tokenizer, tmp_path, monkeypatch):
    """An adapter as somebody else saved it; its base is there, but not pinned."""
    monkeypatch.chdir(tmp_path)
    models.save(_families.make("llama", tokenizer), tokenizer, BASE)
    trained(models.load(BASE)).save_pretrained("theirs")
    return Path("theirs")


def pinned():
    return External(source=str(BASE), sha256=files.digest(BASE))


def merged(base=None):
    return adapters.merged(Path("theirs"), "theirs", base, "float32")


def test_an_adapter_whose_base_is_not_pinned_is_refused(theirs):
    with pytest.raises(UserError, match=f"^theirs is an adapter of '{BASE}', of no fixed revision: name and pin it as"):
        merged()
    about = json.loads((theirs / "adapter_config.json").read_text())
    (theirs / "adapter_config.json").write_text(json.dumps(about | {"revision": files.digest(BASE)}))
    torch.testing.assert_close(logits(merged()), logits(merged(pinned())))


def test_an_adapter_of_another_model_is_refused(theirs, tokenizer):
    models.save(_families.make("llama", tokenizer, num_hidden_layers=3), tokenizer, BASE)
    with pytest.raises(UserError, match=r"^theirs is no adapter of its base: .*layers.3.* have no place"):
        merged(pinned())
    models.save(_families.make("llama", tokenizer, num_hidden_layers=5), tokenizer, BASE)
    with pytest.raises(UserError, match=r"^theirs is no adapter of its base: .*layers.4.* have no place or no weights"):
        merged(pinned())


def test_renamed_weights_and_pickles_are_refused(theirs):
    file = theirs / "adapter_model.safetensors"
    save_file({f"module.{name}": weight for name, weight in load_file(file).items()}, file)
    with pytest.raises(UserError, match="^theirs is no adapter of its base"):
        merged(pinned())
    file.rename(theirs / "adapter_model.bin")
    with pytest.raises(UserError, match="^theirs is an adapter without adapter_model.safetensors: pickled weights"):
        merged(pinned())
