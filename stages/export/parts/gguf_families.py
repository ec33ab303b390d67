"""What llama.cpp computes otherwise than transformers, family by family: what to tell its converter so that the file is
right, or why it can't be. A family that is not named here is left to the converter; the export stage compares it.
"""

import json
from math import sqrt
from typing import Any

import torch

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy

# llama.cpp reads a head of its own, though it be the embedding again
HEAD_OF_ITS_OWN = ("olmo2", "olmo3", "gpt_neox", "gpt_oss", "falcon_h1")
EMBEDDING_AS_HEAD = ("gemma", "gemma2", "gemma3_text", "cohere", "cohere2")  # llama.cpp reads no other
NO_WINDOW = ("mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "phi3", "smollm3", "starcoder2")
WINDOWS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}  # every so manieth layer looks back further
ROTATIONS = ("default", "linear", "llama3", "yarn", "longrope", "proportional")
ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function", "mamba_hidden_act")
LARGEST = {"gemma2": 46, "gemma3_text": 62}  # layers of the one whose queries are scaled by hidden size over heads
EXPERTS = {"mlp_only_layers": [], "decoder_sparse_step": 1}  # in every layer
FIXED: dict[str, dict[str, Any]] = {  # what a config may say, since llama.cpp has nothing else
    "qwen2_moe": {"norm_topk_prob": False, **EXPERTS},
    "qwen3": {"attention_bias": False},
    "qwen3_moe": {"norm_topk_prob": True, "attention_bias": False, **EXPERTS},
    "qwen3_next": {"norm_topk_prob": True, "attention_bias": False, **EXPERTS},
    "olmoe": {"norm_topk_prob": False},
    "cohere": {"attention_bias": False},
    "cohere2": {"attention_bias": False},
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    "mamba2": {"use_bias": False, "n_groups": 1},  # it norms groups of states apart, these three of transformers don't
    "bamba": {"mamba_n_groups": 1},
    "granitemoehybrid": {"mamba_n_groups": 1},
    "falcon_h1": dict.fromkeys(("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"), False),
}


def require_known(model: Any, parent: str) -> None:
    """Refuse what the file could only hold wrongly: llama.cpp would use other mathematics."""
    if wrong := obstacle(model):
        family = model.config.get_text_config().model_type
        raise UserError(f"{parent}: llama.cpp knows no {family} with {wrong}: choose safetensors")


def obstacle(model: Any) -> str | None:
    config = model.config.get_text_config()
    family, count = config.model_type, config.num_hidden_layers
    if unknown := {kind for kind in rotations(config) if kind not in ROTATIONS}:
        return f"RoPE {' and '.join(sorted(unknown))}"
    if other := other_activation(config):
        return f"the activation {other}"
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if family in EMBEDDING_AS_HEAD and not torch.equal(head, embedding):
        return "a head that is not the embedding"
    for field, only in FIXED.get(family, {}).items():
        if (value := getattr(config, field, only)) != only:
            return f"{field} {value}"
    if family == "falcon_h1" and config.mamba_rms_norm and config.mamba_norm_before_gate:
        return "mamba_norm_before_gate True"
    if family == "smollm3" and config.no_rope_layers != every(4, count):
        return "other layers without RoPE than every fourth"
    if family in WINDOWS and windows(config) != [bool(each) for each in every(WINDOWS[family], count)]:
        return f"other layers without a window than number {WINDOWS[family]} and its multiples"
    if family == "qwen3_next" and interval(config) is None:
        return "attention in layers at uneven distances"
    return None


def other_activation(config: Any) -> str | None:
    """One that is not the family's usual, which is all that llama.cpp has; forms of GELU are close enough."""
    for field in ACTIVATIONS:
        own, usual = (str(getattr(each, field, None)) for each in (config, type(config)()))
        if own != usual and not (own.startswith("gelu") and usual.startswith("gelu")):
            return own
    return None


def every(period: int, count: int) -> list[int]:
    """0 for every so manieth layer, 1 for the others."""
    return [int((number + 1) % period != 0) for number in range(count)]


def rotations(config: Any) -> set[str]:
    """The kinds of RoPE, which may differ between layers with and without a window."""
    said = getattr(config, "rope_parameters", None) or {}
    each = [said] if "rope_type" in said else [value for value in said.values() if isinstance(value, dict)]
    return {one["rope_type"] for one in each}


def windows(config: Any) -> list[bool]:
    """Of every layer whether it looks back over a window only."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [kind == "sliding_attention" and bool(getattr(config, "sliding_window", None)) for kind in kinds]


def interval(config: Any) -> int | None:
    """Every so manieth layer attends, the others are recurrent; none if their distances differ."""
    attends = [int(kind != "full_attention") for kind in config.layer_types]
    first = attends.index(0) + 1 if 0 in attends else len(attends) + 1
    return first if attends == every(first, len(attends)) else None


def writes_head(model: Any) -> bool:
    """Whether the file has a head beside the embedding: by the weights, for a config may say what is not so."""
    family, head = model.config.get_text_config().model_type, model.get_output_embeddings().weight
    apart = head.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    return family in HEAD_OF_ITS_OWN or (apart and family not in EMBEDDING_AS_HEAD)


def context(config: Any) -> int | None:
    """Tokens that the file is right for: the window, where llama.cpp knows none. None: without end."""
    own = config.get_text_config()
    length = getattr(own, "max_position_embeddings", None)
    return min(length, own.sliding_window) if own.model_type in NO_WINDOW and any(windows(own)) else length


def hparams(model: Any) -> dict[str, Any]:
    """The config as the converter wants it. `added` is what it does not write; `scaled`, by what a block's weight is
    called in a GGUF, what that is multiplied with.
    """
    config = model.config.get_text_config()
    said = json.loads(config.to_json_string(use_diff=False))
    said |= {"architectures": [type(model).__name__], "tie_word_embeddings": not writes_head(model)}
    said |= {"max_position_embeddings": context(config), "added": {}, "scaled": {}}
    rotated = (said.get("rope_parameters") or {}).get("partial_rotary_factor", 1.0)
    match config.model_type:
        case "gpt2":
            said["n_ctx"] = config.n_positions
            said["added"] = {"feed_forward_length": config.n_inner or 4 * config.n_embd}
        case "cohere2":
            said["rotary_pct"] = rotated
        case "gpt_neox":
            said["rotary_pct"] = rotated
            said["added"] = {"rope_freq_base": config.rope_parameters["rope_theta"]}
        case "deepseek_v3":
            said["scoring_func"] = "sigmoid"
        case "bamba":
            said["attn_rotary_emb"] = int(rotated * anatomy.heads(config).size)
        case "granitemoehybrid":
            said["layer_types"] = ["attention" if kind == "full_attention" else "mamba" for kind in config.layer_types]
            said["added"] = {"rope_scaling_finetuned": config.position_embedding_type == "rope"}
            if not config.num_local_experts:
                del said["num_experts_per_tok"]
                said["added"]["feed_forward_length"] = config.shared_intermediate_size
        case "qwen3_next":
            said["full_attention_interval"] = interval(config)
        case "gemma2":
            said["scaled"] = {"attn_q.weight": query_factor(config)}
        case "gemma3_text":
            said["scaled"] = {"attn_q_norm.weight": query_factor(config)}
    return said


def query_factor(config: Any) -> float:
    """What queries are multiplied with so that llama.cpp's own scale of Gemma's attention comes to the config's."""
    largest = config.num_hidden_layers == LARGEST[config.model_type]
    taken = config.hidden_size / config.num_attention_heads if largest else config.head_dim
    return sqrt(taken / config.query_pre_attn_scalar)
