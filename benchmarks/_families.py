"""Small random models of today's open families, each with what is particular about it switched on.

A family is a row: its classes in transformers and the config that differs from `COMMON`. Weights are drawn from a
seed, wide enough that every part shows in the logits; norms and biases are drawn too, or a converter that forgets them
would pass.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stages.lib.nets import anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.lib.text.packing import Batch

WINDOW = 16  # tokens that a layer with a window looks back
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
}
LLAMA3 = {  # Llama 3.1's stretched rotary positions
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16}
CAPPED = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 3.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> class of transformers without "Config", its config
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": WINDOW, "head_dim": 32}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3Moe", {"head_dim": 32, **EXPERTS, "norm_topk_prob": True}),
    "gemma2": ("Gemma2", {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 32, **CAPPED}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 32, "num_hidden_layers": 6},
    ),
    "phi3": ("Phi3", {"tie_word_embeddings": False}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.5,
            "logits_scaling": 4.0,
            "tie_word_embeddings": True,
        },
    ),
    "granitemoe": (
        "GraniteMoe",
        {**LOCAL, "embedding_multiplier": 6.0, "attention_multiplier": 0.2, "logits_scaling": 3.0},
    ),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 4, "tie_word_embeddings": True}),
    "olmo2": ("Olmo2", {"tie_word_embeddings": False}),
    "cohere2": ("Cohere2", {"sliding_window": WINDOW, "logit_scale": 0.25}),
    "gpt2": ("GPT2", {"n_inner": 128, "num_key_value_heads": 4}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5, "num_key_value_heads": 4, "tie_word_embeddings": False}),
    "mixtral": ("Mixtral", LOCAL),
    "deepseek_v3": (
        "DeepseekV3",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "qk_nope_head_dim": 16,
            "v_head_dim": 32,
            "num_key_value_heads": 4,
        },
    ),
    "gpt_oss": ("GptOss", {**LOCAL, "head_dim": 32, "sliding_window": WINDOW}),
    "mamba2": (
        "Mamba2",
        {"num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1, "chunk_size": 16, "expand": 2},
    ),
    "falcon_h1": (
        "FalconH1",
        {
            **MAMBA,
            "mamba_d_ssm": 128,
            "head_dim": 16,
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.5,
            "key_multiplier": 0.7,
            "attention_out_multiplier": 0.8,
            "ssm_out_multiplier": 0.6,
        },
    ),
    "bamba": ("Bamba", {**MAMBA, "attn_layer_indices": [1, 3]}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **MAMBA,
            **LOCAL,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"] * 2,
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.2,
            "logits_scaling": 3.0,
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            **EXPERTS,
            "head_dim": 32,
            "shared_expert_intermediate_size": 64,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
}


DENSE = [*anatomy.PLAIN, "gemma2", "gemma3", "cohere2", "olmo2", "phi3", "gpt2", "gpt_neox"]
LENGTHS = [[40, 23, 1], [64], [20, 3, 30, 5, 6]]  # tokens of examples; some far longer than a window, one: padding


def packed_batch(lengths: list[list[int]]) -> "Batch":
    """Random rows of 64 tokens of such examples, of which about half is learnt."""
    import torch

    from stages.lib.text.packing import IGNORE

    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 500, (len(lengths), 64), generator=random)
    positions = torch.tensor([[i for length in row for i in range(length)] for row in lengths])
    learnt = (torch.rand(len(lengths), 64, generator=random) < 0.5) & (positions > 0)
    return {"ids": ids, "labels": torch.where(learnt, ids, IGNORE), "positions": positions}


def make(name: str, tokenizer: Any, seed: int = 0, **changes: Any) -> "PreTrainedModel":
    """The model of a row, with as many rows of embedding as the tokenizer has tokens; `changes` to its config."""
    import torch
    import transformers

    from stages.lib.store.loading import with_caps

    kind, own = FAMILIES[name]
    if (layers := changes.get("num_hidden_layers")) and (kinds := own.get("layer_types")):
        changes = {"layer_types": (kinds * layers)[:layers], **changes}
    named = {f"{each}_token_id": getattr(tokenizer, f"{each}_token_id") for each in ("bos", "eos", "pad")}
    config = getattr(transformers, f"{kind}Config")(
        **{**COMMON, "vocab_size": len(tokenizer), **named, **own, **changes}
    )
    torch.manual_seed(seed)
    model = model_class(kind)(config).eval()
    with torch.no_grad():
        for weight in (each for each in model.parameters() if each.ndim == 1):
            weight += 0.1 * torch.randn_like(weight)
    return with_caps(model)


def model_class(kind: str) -> "Callable[..., PreTrainedModel]":
    import transformers

    return getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind.removesuffix('Text')}ForCausalLM")
