"""GGUF: the single file that llama.cpp, Ollama and LM Studio run. Gerganov et al. 2023, github.com/ggml-org/ggml.

F16 keeps every matrix in 16 bits; Q8_0 has blocks of 32 integers of 8 bits with one 16-bit scale (8.5 bits/weight);
Q4_K_M has super-blocks of 256 integers of 4 bits in 8 groups with 6-bit scales and minima (4.5 bits/weight), and
6-bit Q6_K for half of the value and down projections and for the output head. Cost: one pass over the weights.
Norms stay 32-bit floats.
"""

import subprocess
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from stages.export import Export, _vocabulary

NAME, PACKED = "GGUF", False
RUN = """\
    llama-cli -m model.gguf                            # llama.cpp
    ollama create orchard -f Modelfile && ollama run orchard
    python -m stages.lib.chat --model model.gguf       # from an Orchard checkout
"""
BLOCK = {"F16": 1, "Q8_0": 32, "Q4_K_M": 256}  # weights that share one scale; a row holds whole blocks


class Params(Export):
    method: Literal["gguf"]
    type: Literal["F16", "Q8_0", "Q4_K_M"]


def write(model: Any, tokenizer: Any, folder: Path, p: Params) -> None:
    check(model, p.type)
    vocabulary = _vocabulary.read(tokenizer, model.config.vocab_size)
    target = folder / "model.gguf"
    if p.type == "F16":
        write_floats(model, vocabulary, target, torch.float16)
    else:
        full = folder / "full.gguf"
        write_floats(model, vocabulary, full, torch.float32)
        quantize(full, target, p.type)
        full.unlink()
    tokenizer.save_pretrained(folder)
    (folder / "Modelfile").write_text(_vocabulary.modelfile(tokenizer, model.config.max_position_embeddings))


def check(model: Any, type: str) -> None:
    """Refuse what the file could only hold wrongly: llama.cpp would fall back to other types or other mathematics."""
    config = model.config
    if config.model_type != "llama":
        raise SystemExit(f"GGUF export knows llama models, not {config.model_type}: choose safetensors")
    rope = config.rope_parameters["rope_type"]
    if rope != "default" or config.attention_bias or config.mlp_bias:
        raise SystemExit(
            f"GGUF export knows llama models with plain RoPE and no biases, not with RoPE {rope} or biases"
        )
    for name, weight in model.state_dict().items():
        if weight.ndim == 2 and weight.shape[1] % BLOCK[type]:
            raise SystemExit(
                f"{name} has rows of {weight.shape[1]} weights; {type} needs multiples of {BLOCK[type]}: "
                f"choose {' or '.join(t for t in BLOCK if weight.shape[1] % BLOCK[t] == 0)}"
            )


def write_floats(model: Any, vocabulary: dict[str, Any], target: Path, dtype: torch.dtype) -> None:
    import gguf

    writer = gguf.GGUFWriter(target, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == torch.float16 else gguf.LlamaFileType.ALL_F32)
    add_shape(writer, model.config)
    _vocabulary.add(writer, vocabulary)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # without it llama.cpp uses the embedding
        weight = reorder(name, weight.float().cpu(), model.config)
        kept = weight.to(dtype if weight.ndim == 2 else torch.float32).contiguous().numpy()
        writer.add_tensor(str(names.get_name(name, try_suffixes=(".weight",))), kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def reorder(name: str, weight_OI: Tensor, config: Any) -> Tensor:
    """Rows of queries and keys in llama.cpp's order: it rotates neighbours (2i, 2i+1), transformers (i, i + head/2)."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight_OI
    return weight_OI.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight_OI.shape)


def quantize(source: Path, target: Path, type: str) -> None:
    """llama.cpp's own quantizer, the program `llama-quantize`."""
    from ik_llama_cpp import find_quantize_bin

    done = subprocess.run([str(find_quantize_bin()), source, target, type, "1"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"llama-quantize could not write {type}: {(done.stdout + done.stderr)[-500:]}")
