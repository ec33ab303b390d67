"""Every family's file in mainstream llama.cpp against transformers, and what is refused by name."""

import pytest
import torch
from gguf import GGUFReader

from benchmarks import _families
from stages.export import gguf
from stages.export.parts import gguf_families, gguf_file
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses
from stages.lib.runtimes.base import logits

# Where experts are chosen, the least rounding turns a choice that was near
CHOOSING = ("qwen3_moe", "granitemoe", "mixtral", "deepseek_v3", "gpt_oss", "granitemoehybrid", "qwen3_next")
LINEAR, YARN = ({"rope_type": kind, "rope_theta": 1e4, "factor": 4.0} for kind in ("linear", "yarn"))
PARTIAL = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
VARIANTS = {  # what a converter could forget
    "llama-bias": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "llama-yarn": ("llama", {"rope_parameters": YARN | {"original_max_position_embeddings": 64}}),
    "qwen2-padded": ("qwen2", {"vocab_size": 640, "tie_word_embeddings": False}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    "gemma2-scale": ("gemma2", {"query_pre_attn_scalar": 8}),
    "gemma3-scale": ("gemma3", {"query_pre_attn_scalar": 8, "vocab_size": 640}),
    "gpt2-wide": ("gpt2", {"n_inner": 96}),
    "gpt_neox-rope": ("gpt_neox", {"rope_parameters": PARTIAL, "use_parallel_residual": False}),
    "gpt_neox-tied": ("gpt_neox", {"tie_word_embeddings": True}),
    "olmo2-tied": ("olmo2", {"tie_word_embeddings": True}),
    "phi3-window": ("phi3", {"sliding_window": 16}),
    "falcon_h1-tied": ("falcon_h1", {"tie_word_embeddings": True, "ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9]}),
    "hybrid-dense": ("granitemoehybrid", {"num_local_experts": 0, "position_embedding_type": "rope"}),
}
REFUSED = {
    "llama-dynamic": ("llama", {"rope_parameters": LINEAR | {"rope_type": "dynamic"}}, "RoPE dynamic"),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}, "the activation gelu"),
    "qwen3-bias": ("qwen3", {"attention_bias": True}, "attention_bias True"),
    "qwen3_moe-norm": ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob False"),
    "qwen3_moe-dense": ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers \[1\]"),
    "gemma2-untied": ("gemma2", {"tie_word_embeddings": False}, "a head that is not the embedding"),
    "gemma3-layers": ("gemma3", {"layer_types": ["full_attention"] * 6}, "other layers without a window than number 6"),
    "smollm3-rope": ("smollm3", {"no_rope_layer_interval": 2}, "other layers without RoPE than every fourth"),
    "cohere2-bias": ("cohere2", {"attention_bias": True}, "attention_bias True"),
    "gpt2-scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
    "mamba2-groups": ("mamba2", {"n_groups": 2}, "n_groups 2"),
    "falcon_h1-norm": ("falcon_h1", {"mamba_rms_norm": True}, "mamba_norm_before_gate True"),
    "falcon_h1-bias": ("falcon_h1", {"mamba_proj_bias": True}, "mamba_proj_bias True"),
    "qwen3_next-layers": (
        "qwen3_next",
        {"layer_types": ["full_attention", "linear_attention", "full_attention", "linear_attention"]},
        "attention in layers at uneven distances",
    ),
}


def technique(type="F16", **other):
    return gguf.GGUF(method="gguf", type=type, model="pretrain/theirs", tokens="tokenize/bpe", **other)


@pytest.fixture(scope="module")
def long_rows(texts, tokenizer):
    """Longer than every window, and than what RoPE was stretched from, (2, 200)."""
    return torch.tensor([i for text in texts for i in tokenizer.encode(text)][: 2 * 200]).reshape(2, 200)


def written(model, tokenizer, folder, rows, type="F16", **other):
    how = technique(type, **other)
    how.write(model, tokenizer, folder, rows[:, :64])
    rows = rows[:, : how.context(model.config)]
    return losses.compare(lambda ids: model(ids).logits.detach(), logits(how.open(folder)), rows)["kl"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*_families.FAMILIES, *VARIANTS])
def test_a_family_says_in_llama_cpp_what_it_says_in_transformers(name, tokenizer, long_rows, tmp_path):
    kind, changes = VARIANTS.get(name, (name, {}))
    kl = written(_families.make(kind, tokenizer, **changes), tokenizer, tmp_path, long_rows)
    assert kl < (1e-2 if kind in CHOOSING else 1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused_before_any_work(name, tokenizer, tmp_path):
    kind, changes, why = REFUSED[name]
    model = _families.make(kind, tokenizer, **changes)
    with pytest.raises(UserError, match=f"^pretrain/theirs: llama.cpp knows no .* with {why}.*: choose safetensors$"):
        technique().write(model, tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", _families.FAMILIES)
def test_every_family_is_known(name, tokenizer):
    assert gguf_families.obstacle(_families.make(name, tokenizer)) is None


@pytest.mark.slow
def test_what_ends_llama_cpp_does_not_end_the_stage(tokenizer, tmp_path):
    """A projection of queries through no low rank, which it reads for two sizes of model only."""
    model = _families.make("deepseek_v3", tokenizer, q_lora_rank=None)
    with pytest.raises(UserError, match=r"llama.cpp has no deepseek_v3 with this config \(.*\): choose safetensors"):
        technique().write(model, tokenizer, tmp_path, torch.empty(0, 0))
    assert not list(tmp_path.iterdir())


def test_a_window_that_llama_cpp_does_not_know_is_where_the_file_ends(tokenizer):
    assert technique().context(_families.make("mistral", tokenizer).config) == _families.WINDOW
    assert technique().context(_families.make("gemma2", tokenizer).config) == 512
    assert technique().context(_families.make("mistral", tokenizer, sliding_window=None).config) == 512


@pytest.mark.slow
def test_the_head_is_the_one_of_the_weights_whatever_the_config_says(tokenizer, long_rows, tmp_path):
    model = _families.make("llama", tokenizer, tie_word_embeddings=False)
    model.config.tie_word_embeddings = True
    assert written(model, tokenizer, tmp_path, long_rows) < 1e-4
    assert "output.weight" in gguf_file.widths(GGUFReader(tmp_path / "model.gguf"))


@pytest.mark.slow
@pytest.mark.parametrize(("type", "most"), [("BF16", 1e-2), ("Q8_0", 0.02), ("Q4_K_M", 0.3), ("IQ2_XS", 2)])
def test_experts_are_rounded_as_everything_else(type, most, tokenizer, long_rows, tmp_path):
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "initializer_range": 0.05}
    calibration = {"rows": 16} if type == "IQ2_XS" else None
    model = _families.make("mixtral", tokenizer, **wide)
    kl = written(model, tokenizer, tmp_path, long_rows, type, calibration=calibration)
    assert 1e-7 < kl < most
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.0.ffn_gate_exps.weight"] == type.removesuffix("_M")
    assert kinds["blk.0.ffn_gate_inp.weight"] == "F32"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba2", "falcon_h1", "gemma3"])
def test_several_sequences_at_once_are_as_one_at_a_time(name, tokenizer, long_rows, tmp_path):
    """Where the cache is a state, or a window, and prompts are of unequal lengths."""
    technique().write(_families.make(name, tokenizer), tokenizer, tmp_path, long_rows)
    runtime, prompts = technique().open(tmp_path), [long_rows[0, : 5 + 9 * n].tolist() for n in range(5)]
    together = runtime.generate(prompts, 6)
    assert together == [runtime.generate([prompt], 6)[0] for prompt in prompts]
    ids = list(prompts[3])
    for token in together[3]:
        assert int(runtime.logits(ids)[-1].argmax()) == token
        ids.append(token)


@pytest.mark.slow
def test_the_file_says_what_it_is_and_nothing_of_this_machine(tokenizer, tmp_path):
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        technique().write(_families.make("qwen2", tokenizer), tokenizer, folder, torch.empty(0, 0))
    content = (tmp_path / "one" / "model.gguf").read_bytes()
    assert content == (tmp_path / "other" / "model.gguf").read_bytes()
    assert str(tmp_path).encode() not in content
    fields = GGUFReader(tmp_path / "one" / "model.gguf").fields
    assert fields["general.name"].contents() == "Qwen 2 181K"
    assert fields["tokenizer.ggml.eot_token_id"].contents() == tokenizer.eos_token_id
