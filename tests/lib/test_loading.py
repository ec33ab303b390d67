"""Checkpoints of others: whole or refused in one line, packed weights by their formulas, text parts by their wholes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import _families
from stages.lib.frame.errors import UserError
from stages.lib.store import dense, folders, loading, models

IDS = torch.arange(3, 43)[None]
FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]  # OCP microscaling formats, table 5
TEXT = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


def config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def weights(folder, change):
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.fixture
def save(tokenizer, tmp_path):
    """save(family, **changes): a folder as somebody else left it."""

    def write(family="llama", shard="5GB", **changes) -> Path:
        _families.make(family, tokenizer, **changes).save_pretrained(tmp_path / "theirs", max_shard_size=shard)
        return tmp_path / "theirs"

    return write


DAMAGE = {
    "wrapped": (
        lambda f: weights(f, lambda w: {f"_orig_mod.{name}": weight for name, weight in w.items()}),
        "has names that all begin with '_orig_mod.', as wrappers save them",
    ),
    "no head": (
        lambda f: weights(f, lambda w: {name: weight for name, weight in w.items() if name != "lm_head.weight"}),
        "lacks weights that its config.json asks for: lm_head.weight",
    ),
    "renamed": (
        lambda f: weights(f, lambda w: {name.replace("norm", "ln"): weight for name, weight in w.items()}),
        r"asks for: model.layers.0.input_layernorm.weight and 8 more; it has model.layers.0.input_layerln.weight and 8",
    ),
    "more layers": (lambda f: config(f, num_hidden_layers=5), "lacks .*: model.layers.4.input_layernorm.weight and 8"),
    "fewer layers": (lambda f: config(f, num_hidden_layers=3), "no place for: model.layers.3.input_layernorm.weight"),
    "other vocab_size": (
        lambda f: config(f, vocab_size=609),
        "has lm_head.weight of 512 x 64, but its config.json makes it 609 x 64",
    ),
    "custom code": (
        lambda f: config(f, model_type="my_custom", auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
        r"is of type 'my_custom', custom code \(modeling_x.X\), which is never run here",
    ),
    "unknown type": (lambda f: config(f, model_type="llama9"), "is of type 'llama9', which transformers .* does not"),
    "no type": (lambda f: config(f, model_type=None), "names no model_type"),
    "no speaker": (lambda f: config(f, model_type="t5"), "is of type 't5', which is no causal language model"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "half a config": (lambda f: (f / "config.json").write_text('{"a'), "can't be opened: JSONDecodeError"),
    "text for a number": (lambda f: config(f, hidden_size="64"), "can't be opened: .*'hidden_size'"),
    "cut off": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "is damaged: SafetensorError",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"holds pickled weights \(pytorch_model.bin\), which can run code",
    ),
    "gptq": (lambda f: config(f, quantization_config={"quant_method": "gptq", "bits": 4}), "is quantized by gptq"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_not_whole_is_refused_in_one_line_that_begins_with_the_source(name, save):
    damage, complaint = DAMAGE[name]
    damage(folder := save())
    with pytest.raises(UserError, match=f"^theirs .*{complaint}") as error:
        loading.load(folder, "theirs")
    assert "\n" not in str(error.value) and len(str(error.value)) < 450


def test_a_lost_shard_is_named_and_all_of_them_are_the_model(save):
    folder = save(shard="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 5
    whole = logits(loading.load(folder, "theirs"))
    shutil.rmtree(folder)
    torch.testing.assert_close(whole, logits(loading.load(save(), "theirs")))
    shutil.rmtree(folder)
    save(shard="100KB")
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"theirs is not complete: {shards[1].name} of {len(shards)} shards missing"):
        loading.load(folder, "theirs")


def test_an_index_that_leads_out_of_the_folder_is_refused(save, tmp_path):
    """A hash of the folder would not cover what lies elsewhere."""
    folder = save(shard="100KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    first = sorted(set(index["weight_map"].values()))[0]
    (folder / first).rename(tmp_path / first)
    moved = {name: f"../{file}" if file == first else file for name, file in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index | {"weight_map": moved}))
    with pytest.raises(UserError, match=rf"theirs: model.safetensors.index.json names '../{first}', which is no file"):
        loading.load(folder, "theirs")


def test_custom_code_beside_a_known_type_is_neither_run_nor_handed_on(save, tokenizer, tmp_path):
    config(folder := save(), auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    models.save(loading.load(folder, "theirs"), tokenizer, tmp_path / "ours")
    assert "auto_map" not in json.loads((tmp_path / "ours/config.json").read_text())


def test_a_head_beside_a_tied_config_is_kept_and_said(save, tokenizer, tmp_path, capsys):
    folder = save("qwen2")
    weights(folder, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"] + 0.1})
    model = loading.load(folder, "theirs")
    said = logits(model)
    assert "theirs: its config.json ties the head to the embedding, but" in capsys.readouterr().out
    models.save(model, tokenizer, tmp_path / "ours")
    assert not json.loads((tmp_path / "ours/config.json").read_text())["tie_word_embeddings"]
    torch.testing.assert_close(logits(models.load(tmp_path / "ours")), said)
    weights(folder, lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"].clone()})
    assert loading.load(folder, "theirs").config.tie_word_embeddings


def test_advice_on_decoding_is_left_out_and_the_ends_are_kept(save, tokenizer, tmp_path):
    folder = save()
    advice = {"temperature": 0.6, "do_sample": False, "repetition_penalty": 1.3, "eos_token_id": [2, 5]}
    (folder / "generation_config.json").write_text(json.dumps(advice))
    models.save(loading.load(folder, "theirs"), tokenizer, tmp_path / "ours")
    kept = json.loads((tmp_path / "ours/generation_config.json").read_text())
    assert kept["eos_token_id"] == [2, 5] and not kept.keys() & {"temperature", "repetition_penalty"}


@pytest.mark.parametrize("family", ["llama", "llama3", "mistral", "qwen3", "gemma3", "phi3", "gpt_neox", "mixtral"])
def test_a_config_of_transformers_4_says_the_same(family, save):
    """rope_theta at the top, rope_scaling, torch_dtype; no head_dim where it follows from the rest."""
    more = {} if family in ("gemma3", "gpt_neox", "llama3") else {"rope_theta": 70000.0}
    said = logits(loading.load(folder := save(family, **more), "theirs"))
    about = folders.config(json.loads((folder / "config.json").read_text()))
    for name in ("rope_parameters", "dtype"):
        del about[name]
    if about.get("head_dim") == 16:
        del about["head_dim"]
    (folder / "config.json").write_text(json.dumps(about))
    torch.testing.assert_close(logits(loading.load(folder, "theirs")), said)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stored_is_the_dtype_of_the_file(dtype, save, tokenizer, tmp_path):
    _families.make("llama", tokenizer).to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    assert loading.load(tmp_path / "theirs", "theirs").dtype == torch.float32
    model = loading.load(tmp_path / "theirs", "theirs", "stored")
    models.save(model, tokenizer, tmp_path / "ours")
    assert model.dtype == models.load(tmp_path / "ours", "stored").dtype == getattr(torch, dtype)
    stored, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    assert all(torch.equal(stored[name], weight) for name, weight in theirs.items())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["int8", "rtn", "nf4"])
def test_what_quantize_packed_is_unpacked_wholly(method, llama, tokenizer, tmp_path):
    from stages.lib.frame import params
    from stages.quantize.parts import compressed

    net = llama(len(tokenizer), hidden=128)
    given = {"method": method, "model": "a/b", "tokens": "a/b"} | ({"group_size": 32} if method == "rtn" else {})
    with compressed.quiet():
        net = params.technique("quantize", "q", given).quantize(net, torch.empty(0, 0))  # pyright: ignore
        compressed.round_rest(net, torch.float16)
        said = logits(net)
        models.save(compressed.pack(net, torch.float16), tokenizer, tmp_path / "packed")
    plain = loading.load(tmp_path / "packed", "theirs")
    assert not hasattr(plain.config, "quantization_config")
    assert plain.num_parameters() == llama(len(tokenizer), hidden=128).num_parameters()
    torch.testing.assert_close(logits(plain), said, atol=2e-3, rtol=1e-3)
    models.save(plain, tokenizer, tmp_path / "plain")
    torch.testing.assert_close(logits(models.load(tmp_path / "plain")), logits(plain))
    torch.testing.assert_close(logits(dense.load(tmp_path / "packed")), logits(plain))


def test_fp8_blocks_are_multiplied_by_their_scales(save):
    folder, block = save(), 32
    expected = {}

    def rounded(named):
        packed = {}
        for name, weight in named.items():
            packed[name] = expected[name] = weight
            if name.endswith("_proj.weight"):
                rows, columns = weight.shape[0] // block, weight.shape[1] // block
                scale = 0.01 + torch.rand(rows, columns)
                spread = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)
                packed[name] = (weight / spread).to(torch.float8_e4m3fn)
                packed[f"{name}_scale_inv"], expected[name] = scale, packed[name].float() * spread
        return packed

    weights(folder, rounded)
    kind = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    config(folder, quantization_config=kind | {"modules_to_not_convert": ["lm_head"]})
    found = loading.load(folder, "theirs").state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, msg=name)


def test_mxfp4_blocks_are_table_entries_times_powers_of_two(save):
    folder = save("gpt_oss")
    expected = {}

    def packed(named):
        torch.manual_seed(0)
        for name in [name for name in named if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
            experts, inputs, outputs = named.pop(name).shape
            named[f"{name}_blocks"] = torch.randint(256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
            named[f"{name}_scales"] = torch.randint(122, 128, (experts, outputs, inputs // 32), dtype=torch.uint8)
            blocks, scales = named[f"{name}_blocks"].tolist(), named[f"{name}_scales"].tolist()
            weight = torch.empty(experts, inputs, outputs)
            for e in range(experts):
                for o in range(outputs):
                    for g, pairs in enumerate(blocks[e][o]):
                        values = [FP4[half] for pair in pairs for half in (pair & 15, pair >> 4)]
                        weight[e, 32 * g : 32 * g + 32, o] = torch.tensor(values) * 2.0 ** (scales[e][o][g] - 127)
            expected[name] = weight
        return named

    weights(folder, packed)
    config(folder, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    found = loading.load(folder, "theirs").state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, msg=name)


def composite(kind):
    import transformers as t

    if kind == "gemma3":
        about = t.Gemma3Config(text_config=TEXT | {"head_dim": 16}, vision_config=EYES, mm_tokens_per_image=4)
        return t.Gemma3ForConditionalGeneration(about)
    if kind == "mistral3":
        text, eyes = TEXT | {"model_type": "mistral"}, EYES | {"model_type": "pixtral"}
        return t.Mistral3ForConditionalGeneration(t.Mistral3Config(text_config=text, vision_config=eyes))
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 50000.0}
    eyes = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
    tokens = {f"{name}_token_id": 290 + i for i, name in enumerate(("image", "video", "vision_start", "vision_end"))}
    text = TEXT | {"rope_parameters": rope}
    if kind == "qwen2_5_vl":
        config = t.Qwen2_5_VLConfig(text_config=text, vision_config=eyes | {"fullatt_block_indexes": [0]}, **tokens)
        return t.Qwen2_5_VLForConditionalGeneration(config)
    eyes |= {"deepstack_visual_indexes": [0]}
    text |= {"head_dim": 16, "rope_parameters": rope | {"mrope_interleaved": True}}
    return t.Qwen3VLForConditionalGeneration(t.Qwen3VLConfig(text_config=text, vision_config=eyes, **tokens))


@pytest.mark.parametrize(
    ("kind", "text"),
    [("gemma3", "gemma3_text"), ("mistral3", "mistral"), ("qwen2_5_vl", "qwen2"), ("qwen3_vl", "qwen3")],
)
def test_of_a_model_that_sees_the_text_part_is_taken(kind, text, tmp_path):
    torch.manual_seed(0)
    whole = composite(kind).eval()
    whole.save_pretrained(tmp_path)
    model = loading.load(tmp_path, "theirs")
    assert model.config.model_type == text
    torch.testing.assert_close(logits(model), logits(whole))
    model.save_pretrained(tmp_path / "text")
    torch.testing.assert_close(logits(loading.load(tmp_path / "text", "theirs")), logits(whole))
