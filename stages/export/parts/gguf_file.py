"""What all GGUF files have in common: which models they can hold, how these are written, llama.cpp's own quantizer."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from stages.export.parts import gguf_vocabulary
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy

RUN = """\
    llama-cli -m model.gguf                            # llama.cpp
    ollama create orchard -f Modelfile && ollama run orchard
    python -m apps.chat --model model.gguf             # from an Orchard checkout
"""


def require_llama(config: Any, parent: str) -> None:
    """Refuse what the file could only hold wrongly: llama.cpp would use other mathematics."""
    if config.model_type != "llama":
        raise UserError(f"GGUF export knows llama models, not {config.model_type} ({parent}): choose safetensors")
    rope = config.rope_parameters["rope_type"]
    if rope != "default" or config.attention_bias or config.mlp_bias:
        known = "GGUF export knows llama models with plain RoPE and no biases"
        raise UserError(f"{known}, not with RoPE {rope} or biases ({parent}): choose safetensors")


def write_file(model: Any, vocabulary: dict[str, Any], target: Path, type: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(target, "llama")
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if type == "F32" else f"MOSTLY_{type}"])
    add_shape(writer, model.config)
    gguf_vocabulary.add(writer, vocabulary)
    rename, heads = renamer(model), rotated(model)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # without it llama.cpp uses the embedding
        weight = weight.float().cpu()
        if name in heads:
            weight = reorder(weight, heads[name])
        kept = gguf.GGMLQuantizationType[type_of(name, weight, type)]
        writer.add_tensor(rename(name), gguf.quants.quantize(weight.contiguous().numpy(), kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def type_of(name: str, weight: Tensor, type: str) -> str:
    """Of one tensor in a file that no other program quantizes."""
    if weight.ndim == 1:
        return "F32"
    return "Q8_0" if type.startswith("TQ") and name in ("model.embed_tokens.weight", "lm_head.weight") else type


def renamer(model: Any) -> Callable[[str], str]:
    """transformers' name of a tensor -> llama.cpp's."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    return lambda name: str(names.get_name(name, try_suffixes=(".weight",)))


def add_shape(writer: Any, config: Any) -> None:
    heads = anatomy.heads(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads.queries)
    writer.add_head_count_kv(heads.keys_values)
    writer.add_key_length(heads.size)
    writer.add_value_length(heads.size)
    writer.add_rope_dimension_count(heads.size)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def rotated(model: Any) -> dict[str, int]:
    """The matrices of queries and keys, and their number of heads: RoPE rotates what they put out."""
    heads = anatomy.heads(model.config)
    counts = {"queries": heads.queries, "keys": heads.keys_values}
    return {name: counts[rows.space] for name, (rows, *_) in anatomy.axes(model).items() if rows.space in counts}


def reorder(weight_OI: Tensor, heads: int, back: bool = False) -> Tensor:
    """Rows of queries or keys in llama.cpp's order: it rotates neighbours (2i, 2i+1), transformers (i, i + head/2)."""
    sizes = (heads, -1, 2) if back else (heads, 2, -1)
    return weight_OI.unflatten(0, sizes).transpose(1, 2).reshape(weight_OI.shape)


def quantize(source: Path, target: Path, type: str, rules: list[str], importance: Path | None = None) -> None:
    """llama.cpp's own quantizer, the program `llama-quantize`. Rules are PATTERN=TYPE; the first that fits counts."""
    from ik_llama_cpp import find_quantize_bin

    options = ["--custom-q", ",".join(rules)] if rules else []
    if importance:
        options += ["--imatrix", str(importance), "--hide-imatrix"]  # hidden: its path would be in the file
    command = [str(find_quantize_bin()), *options, source, target, type, "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"llama-quantize could not write {type}: {(done.stdout + done.stderr)[-500:]}")


def write_beside(tokenizer: Any, config: Any, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    (folder / "Modelfile").write_text(gguf_vocabulary.modelfile(tokenizer, config.max_position_embeddings))
