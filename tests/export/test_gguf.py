"""The GGUF file against transformers, against mainstream llama.cpp, against its own promises."""

import re

import numpy as np
import pytest
import torch

from apps.parts.llama import Llama
from stages.export import gguf
from stages.export.parts import gguf_file
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses
from stages.lib.runtimes.base import logits
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import dense, models

HARD = [
    "12345 a 1b2 3.14 ½ ² Ⅷ ٣",
    "  two  spaces\n\n\ttab \r\n end  ",
    "naïve café 日本語 🙂 é y\u3000z\u00a0x",
    "don't I'll WE'VE it's",
    "<|bos|><|user|>hi 3+4=?<|end|><|assistant|> <|pad|><|system|> <|endish|>",
    "... !!! 100% #### 7\n",
    " ",
]
MESSAGES = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "12 + 3?"},
    {"role": "assistant", "content": "15"},
    {"role": "user", "content": "and  'then'\n"},
]


def technique(type="F16", **other):
    return gguf.GGUF(method="gguf", type=type, model="align/dpo", tokens="tokenize/bpe", **other)


@pytest.fixture(scope="session")
def f16(export_gguf):
    return open_runtime(export_gguf("F16"))


@pytest.mark.parametrize("text", HARD)
def test_llama_cpp_numbers_tokens_as_transformers_does(f16, text):
    ids = f16.tokenizer.encode(text, add_special_tokens=False)
    assert f16.model.tokenize(text, add_bos=False, special=True) == ids


def test_llama_cpp_numbers_a_corpus_as_transformers_does(f16, texts):
    for text in texts:
        assert f16.model.tokenize(text, add_bos=False, special=True) == f16.tokenizer.encode(text)


def test_the_template_alone_writes_the_first_token(f16):
    text = f16.tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert f16.model.tokenize(text, add_bos=True, special=True) == f16.tokenizer.encode(text)


@pytest.mark.parametrize(("type", "kl"), [("F16", 1e-6), ("BF16", 1e-4), ("Q8_0", 1e-3), ("Q4_K_M", 0.05)])
def test_divergence_from_the_source(export_gguf, model_folder, rows, type, kl):
    source, export = open_runtime(model_folder), open_runtime(export_gguf(type))
    seen = losses.compare(logits(source), logits(export), rows[:4])
    assert seen["kl"] < kl
    assert (seen["kl"] > 1e-6) == (type != "F16")  # a quantized file that loses nothing was not quantized


def test_f16_logits_are_those_of_transformers(f16, model_folder, rows):
    ids = rows[0].tolist()
    expected = open_runtime(model_folder).logits(ids)
    assert abs(f16.logits(ids) - expected).max() < 0.01 * expected.std()


def test_mainstream_llama_cpp_agrees(f16, rows):
    """The functions called here against the same library's server: every token's probability."""
    server = Llama(f16.file).server
    for ids in rows[:4, :40].tolist():
        request = {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": len(f16.tokenizer)}
        first = server.handle_completions(request)["choices"][0]["logprobs"]["content"][0]
        theirs = {each["id"]: each["logprob"] for each in first["top_logprobs"]}
        ours = torch.from_numpy(f16.logits(ids)[-1]).log_softmax(-1)
        assert first["id"] == int(ours.argmax())
        assert len(theirs) == len(ours)
        assert [theirs[i] for i in range(len(ours))] == pytest.approx(ours.tolist(), abs=0.01)


def test_mainstream_llama_cpp_renders_the_same_chat(f16):
    """Seen through what it computes: as many prompt tokens, and the same answer to them."""
    ids = f16.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    request = {"messages": MESSAGES, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    said = Llama(f16.file).server.handle_chat_completions(request)
    first = said["choices"][0]["logprobs"]["content"][0]
    ours = torch.from_numpy(f16.logits(ids)[-1]).log_softmax(-1)
    assert said["usage"]["prompt_tokens"] == len(ids)
    assert (first["id"], first["logprob"]) == (int(ours.argmax()), pytest.approx(ours.max().item(), abs=0.01))


def test_ollama_renders_the_same_chat(export_gguf, f16):
    modelfile = (export_gguf("F16") / "Modelfile").read_text()
    template = re.search(r'TEMPLATE """(.*)"""', modelfile, re.DOTALL)[1]
    before, body, after = re.fullmatch(r"(.*)\{\{ range \.Messages \}\}(.*)\{\{ end \}\}(.*)", template).groups()
    turns = [body.replace("{{ .Role }}", m["role"]).replace("{{ .Content }}", m["content"]) for m in MESSAGES]
    expected = f16.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert before + "".join(turns) + after == expected
    assert 'PARAMETER stop "<|end|>"' in modelfile


def test_q4_k_m_has_k_quants_only(export_gguf):
    from gguf import GGUFReader

    matrices = [t for t in GGUFReader(export_gguf("Q4_K_M") / "model.gguf").tensors if len(t.shape) == 2]
    assert {t.tensor_type.name for t in matrices} == {"Q4_K", "Q6_K"}
    assert 8 * sum(t.n_bytes for t in matrices) / sum(t.n_elements for t in matrices) < 6.5
    # 144 bytes for 256 weights in Q4_K, 210 in Q6_K
    assert all(t.n_bytes == t.n_elements // 256 * {"Q4_K": 144, "Q6_K": 210}[t.tensor_type.name] for t in matrices)


# Bits a weight of the blocks: llama.cpp's ggml-common.h, bytes of a block over its weights.
TIERS = {"Q8_0": 8.5, "Q5_0": 5.5, "Q4_0": 4.5, "IQ4_NL": 4.5, "Q6_K": 6.5625, "Q5_K_S": 5.5, "Q4_K_S": 4.5}
TIERS |= {"Q3_K_S": 3.4375, "Q2_K": 2.625, "IQ4_XS": 4.25, "IQ3_S": 3.4375, "IQ3_XXS": 3.0625, "IQ2_S": 2.5625}
TIERS |= {"IQ2_XS": 2.3125, "IQ2_XXS": 2.0625, "Q5_K_M": 5.5, "Q4_K_M": 4.5, "Q3_K_L": 3.4375, "Q3_K_M": 3.4375}


@pytest.fixture(scope="module")
def deep(tokenizer, tmp_path_factory):
    """Nine layers, where llama.cpp's mixes give some other types; as a file of 32-bit floats."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 9, "vocab_size": len(tokenizer)}
    config = LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=2, tie_word_embeddings=False)
    file = tmp_path_factory.mktemp("deep") / "full.gguf"
    return gguf_file.write(LlamaForCausalLM(config).eval(), tokenizer, file)[0]


SEARCHED = ("IQ2", "IQ3")  # in tables of lattice points, for seconds


@pytest.mark.parametrize(
    "type", [pytest.param(t, marks=pytest.mark.slow) if t.startswith(SEARCHED) else t for t in TIERS]
)
def test_every_tier_has_the_bits_it_says_and_runs(type, deep, tmp_path):
    from gguf import GGUFReader

    types = technique(type, calibration=None if type == "Q8_0" else {"rows": 16}).types(gguf_file.widths(deep))
    importance = {name: np.ones(256, np.float32) for name in types}
    gguf_file.quantize(deep, tmp_path / "model.gguf", type, types, importance)
    tensors = {t.name: t for t in GGUFReader(tmp_path / "model.gguf").tensors}
    ffn = [t for name, t in tensors.items() if "ffn_up" in name or "ffn_gate" in name]
    assert {8 * t.n_bytes / t.n_elements for t in ffn} == {TIERS[type]}
    assert all(t.tensor_type.name.startswith(("Q", "IQ")) for t in tensors.values() if len(t.shape) == 2)
    assert Llama(tmp_path / "model.gguf").server.handle_completions({"prompt": [1, 5], "max_tokens": 2})["choices"]


def test_more_bits_are_where_llama_cpp_has_them(deep):
    """Of nine layers the first eighth, the last eighth, and every third between: as llama-quantize chose."""
    types = technique("Q4_K_M").types(gguf_file.widths(deep))
    more = {name for name, type in types.items() if type == "Q6_K"}
    layers = (0, 3, 6, 7, 8)
    assert more == {f"blk.{n}.{kind}.weight" for n in layers for kind in ("attn_v", "ffn_down")} | {"output.weight"}
    assert {type for name, type in types.items() if name not in more} == {"Q4_K"}


def test_tiers_without_long_rows_are_for_models_whose_rows_are_short(tiny, tokenizer, tmp_path):
    """Blocks of 32 everywhere, also in the head, for which llama.cpp would take 256."""
    from gguf import GGUFReader

    technique("Q4_0").write(tiny, tokenizer, tmp_path, torch.empty(0, 0))
    kinds = {t.tensor_type.name for t in GGUFReader(tmp_path / "model.gguf").tensors if len(t.shape) == 2}
    assert kinds == {"Q4_0", "Q8_0"}


def test_rows_that_hold_no_whole_block_are_refused(tiny, tokenizer, tmp_path):
    with pytest.raises(
        UserError,
        match="rows of 64 weights; Q4_K_M needs multiples of 256: choose fallback, or F16 or BF16 or Q8_0 or Q5_0",
    ):
        technique("Q4_K_M").write(tiny, tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


def test_fallback_is_for_types_that_have_one_and_rows_that_hold_its_blocks(tokenizer, llama, tmp_path):
    with pytest.raises(ValueError, match="Q8_0 has no fallback, a type of smaller blocks"):
        technique("Q8_0", fallback=True)
    model = llama(len(tokenizer), hidden=48)
    with pytest.raises(UserError, match="rows of 48 weights; Q4_K_M needs multiples of 32: choose F16 or BF16$"):
        technique("Q4_K_M", fallback=True).write(model, tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


def test_untied_heads_and_padded_vocabularies(tokenizer, rows, tmp_path):
    """As hub models have them: a head of its own, more embedding rows than tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 24, hidden_size=64, intermediate_size=128, num_hidden_layers=1, head_dim=32,
        num_attention_heads=4, num_key_value_heads=1, rope_theta=5e5, rms_norm_eps=1e-3, tie_word_embeddings=False,
        initializer_range=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    technique().write(model, tokenizer, tmp_path, torch.empty(0, 0))
    with torch.no_grad():
        expected = model(rows[:1]).logits[0].numpy()
    assert abs(open_runtime(tmp_path).logits(rows[0].tolist()) - expected).max() < 0.01 * expected.std()


def test_a_gguf_is_no_source(export_gguf):
    with pytest.raises(UserError, match="config.json is missing"):
        dense.load(export_gguf("F16"))


def test_packed_integers_become_floats(model_folder, tmp_path):
    """int8 as compressed-tensors: the file's q * s, recomputed by hand, is what gets exported."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from safetensors.torch import load_file

    model = models.load(model_folder)
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights}
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": group}, ignore=["lm_head"]))
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.abs().amax(1, keepdim=True) / 127
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    about = compressor.quantization_config.model_dump(exclude={"quant_method"})
    model.config.quantization_config = {"quant_method": "compressed-tensors", **about}
    models.save(model, models.load_tokenizer(model_folder), tmp_path / "int8")

    files = load_file(tmp_path / "int8" / "model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    packed = [key.removeprefix(name + ".") for key in files if key.startswith(name)]
    assert files[f"{name}.{'weight' if 'weight' in packed else 'weight_packed'}"].dtype in (torch.int8, torch.int32)

    unpacked = dense.load(tmp_path / "int8")
    assert set(unpacked.state_dict()) == set(models.load(model_folder).state_dict())
    original = models.load(model_folder).get_submodule(name).weight
    scale = original.abs().amax(1, keepdim=True) / 127
    expected = (original / scale).round().clamp(-128, 127) * scale
    assert torch.allclose(unpacked.get_submodule(name).weight, expected, atol=1e-6)
    (tmp_path / "gguf").mkdir()
    technique("Q8_0").write(unpacked, models.load_tokenizer(model_folder), tmp_path / "gguf", torch.empty(0, 0))


@pytest.mark.parametrize("type", ["Q4_K_M", "Q2_K", "IQ4_XS"])
def test_with_fallback_llama_cpp_takes_smaller_blocks_and_the_file_runs(type, tiny, tokenizer, rows, tmp_path):
    """64 weights a row: no type with blocks of 256 can be in the file."""
    from gguf import GGUFReader

    technique(type, fallback=True, calibration={"rows": 16}).write(tiny, tokenizer, tmp_path, rows)
    kinds = {t.tensor_type.name for t in GGUFReader(tmp_path / "model.gguf").tensors if len(t.shape) == 2}
    assert kinds == {"Q8_0", "Q5_0" if type == "Q4_K_M" else "IQ4_NL"}
    assert Llama(tmp_path / "model.gguf").server.handle_completions({"prompt": [1, 5], "max_tokens": 2})["choices"]
