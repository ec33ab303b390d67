"""GGUF: the single file that llama.cpp, Ollama and LM Studio run. Gerganov et al. 2023, github.com/ggml-org/ggml.

F16 keeps every matrix in 16 bits; Q8_0, Q5_0, Q4_0 have blocks of 32 integers with one 16-bit scale (4.5 bits/weight
for 4); K-quants have super-blocks of 256 with 4- to 8-bit scales of 8 or 16 groups, and more bits for some tensors: _S,
_M, _L say how many. I-quants take groups of 8 (IQ2) or 4 (IQ3) weights from a table of lattice points, or single ones
from 16 uneven levels (IQ4). With `calibration` the rounding minds how large a column's inputs are; without it IQ2 is
noise, so llama.cpp refuses it. Cost: one pass over the weights, a forward pass with calibration; I-quants search, at
minutes per billion weights. TQ types hold blocks of 256 ternary weights and a 16-bit scale without any loss, in 1.69
(TQ1_0: five in a byte) or 2.06 bits (TQ2_0: four); only a model trained with `fake_quantize` has such weights, and
embedding and head become Q8_0. Norms stay 32-bit floats.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from stages.export import Export, _blocks, _dense, _importance, _vocabulary
from stages.lib import fake_quantize
from stages.lib.params import Calibration

Type = Literal[
    "F16", "Q8_0", "Q5_0", "Q4_0", "IQ4_NL", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M",
    "Q3_K_S", "Q2_K", "IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "TQ2_0", "TQ1_0"
]  # fmt: skip
SMALL = {"F16": 1, "Q8_0": 32, "Q5_0": 32, "Q4_0": 32, "IQ4_NL": 32}
TERNARY = ("TQ2_0", "TQ1_0")
EXACT = ("F16", *TERNARY)
BLOCK = {type: SMALL.get(type, 256) for type in get_args(Type)}  # weights that share a scale; a row holds whole blocks
# Types of head, value projections and the rest, where those that the quantizer would choose need longer rows or are
# known to its maker's fork of llama.cpp only; the head as in llama.cpp, the values one K-quant above the rest.
MIX = {
    "Q5_0": ("q8_0", "q5_0"),
    "Q4_0": ("q8_0", "q4_0"),
    "IQ4_NL": ("q8_0", "iq4_nl"),
    "IQ4_XS": ("q6_K", "q5_K"),
    "IQ3_S": ("q6_K", "q4_K"),
    "IQ3_XXS": ("q5_K", "q4_K"),
    "IQ2_S": ("q5_K", "q3_K"),
    "IQ2_XS": ("q5_K", "q3_K"),
    "IQ2_XXS": ("q5_K", "q3_K"),
}
# For matrices of short rows; for all other types iq4_nl. For Q5 llama.cpp takes q5_1, but types with an offset (q4_1,
# q5_1) go wrong in ik_llama.cpp, which sums a block's inputs in 16 bits: 1.8 nats/token on SmolLM2-135M, mainstream 0.
FALLBACK = {"Q6": "q8_0", "Q5": "q5_0", "Q4": "q5_0"}

NAME, load = "GGUF", _dense.load
RUN = """\
    llama-cli -m model.gguf                            # llama.cpp
    ollama create orchard -f Modelfile && ollama run orchard
    python -m stages.lib.chat --model model.gguf       # from an Orchard checkout
"""


class Params(Export):
    method: Literal["gguf"]
    type: Type
    fallback: bool = False  # what has rows of no whole blocks may have a type with smaller ones
    calibration: Calibration | None = Field(None, validate_default=True)

    @field_validator("calibration")
    @classmethod
    def needed(cls, calibration: Calibration | None, info: ValidationInfo) -> Calibration | None:
        if calibration is None and info.data.get("type", "").startswith("IQ2"):
            raise PydanticCustomError("needed", "IQ2 types need calibration rows")
        if calibration is not None and info.data.get("type") in EXACT:
            raise PydanticCustomError("in_vain", "{type} rounds nothing that calibration could mind", dict(info.data))
        return calibration


def write(model: Any, tokenizer: Any, folder: Path, p: Params, rows_NT: Tensor | None = None) -> None:
    check(model, p)
    vocabulary = _vocabulary.read(tokenizer, model.config.vocab_size)
    target = folder / "model.gguf"
    if p.type in EXACT:
        write_file(model, vocabulary, target, p.type)
    else:
        full = folder / "full.gguf"
        write_file(model, vocabulary, full, "F32")
        chosen = short(model, p.type) + (rules(p.type) if p.type in MIX else [])
        options = ["--custom-q", ",".join(chosen)] if chosen else []
        if rows_NT is not None:
            importance = folder / "importance.dat"
            _importance.save(_importance.measure(model, rows_NT), renamer(model), importance)
            options += ["--imatrix", str(importance), "--hide-imatrix"]  # hidden: its path would be in the file
        quantize(full, target, p.type, options)
        for used in [full, *folder.glob("importance.dat")]:
            used.unlink()
    tokenizer.save_pretrained(folder)
    (folder / "Modelfile").write_text(_vocabulary.modelfile(tokenizer, model.config.max_position_embeddings))


def check(model: Any, p: Params) -> None:
    """Refuse what the file could only hold wrongly: llama.cpp would fall back to other types or other mathematics."""
    config = model.config
    if config.model_type != "llama":
        raise SystemExit(f"GGUF export knows llama models, not {config.model_type}: choose safetensors")
    rope = config.rope_parameters["rope_type"]
    if rope != "default" or config.attention_bias or config.mlp_bias:
        raise SystemExit(
            f"GGUF export knows llama models with plain RoPE and no biases, not with RoPE {rope} or biases"
        )
    if p.type in TERNARY:
        fake_quantize.require_ternary(model, f"GGUF {p.type}")
    may_differ = p.fallback and p.type not in TERNARY
    for name, width in () if may_differ else _blocks.short_rows(model, BLOCK[p.type]).items():
        raise SystemExit(
            f"{name} has rows of {width} weights; {p.type} needs multiples of {BLOCK[p.type]}: choose "
            f"fallback, or {' or '.join(t for t in BLOCK if width % BLOCK[t] == 0)}"
        )


def write_file(model: Any, vocabulary: dict[str, Any], target: Path, type: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(target, "llama")
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if type == "F32" else f"MOSTLY_{type}"])
    add_shape(writer, model.config)
    _vocabulary.add(writer, vocabulary)
    rename = renamer(model)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # without it llama.cpp uses the embedding
        weight = reorder(name, weight.float().cpu(), model.config)
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
    return "Q8_0" if type in TERNARY and name in ("model.embed_tokens.weight", "lm_head.weight") else type


def renamer(model: Any) -> Callable[[str], str]:
    """transformers' name of a tensor -> llama.cpp's."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    return lambda name: str(names.get_name(name, try_suffixes=(".weight",)))


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


def short(model: Any, type: str) -> list[str]:
    """Rules for the matrices whose rows hold no whole block: what mainstream llama.cpp falls back to."""
    rename = renamer(model)
    kinds = {rename(name).split(".")[-2] for name in _blocks.short_rows(model, BLOCK[type])}
    heads = {"token_embd": "^token_embd=q8_0", "output": "^output=q8_0"}
    return [heads.get(kind, f"{kind}={FALLBACK.get(type[:2], 'iq4_nl')}") for kind in sorted(kinds)]


def rules(type: str) -> list[str]:
    """Pattern of a tensor's name = its type; the first that fits counts."""
    head, values = MIX[type]
    return [f"^token_embd={head}", f"^output={head}", f"attn_v={values}", f"^blk={type.lower()}"]


def quantize(source: Path, target: Path, type: str, options: list[str]) -> None:
    """llama.cpp's own quantizer, the program `llama-quantize`."""
    from ik_llama_cpp import find_quantize_bin

    command = [str(find_quantize_bin()), *options, source, target, type, "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"llama-quantize could not write {type}: {(done.stdout + done.stderr)[-500:]}")
