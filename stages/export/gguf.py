"""GGUF: the single file that llama.cpp, Ollama and LM Studio run. Gerganov et al. 2023, github.com/ggml-org/ggml.

F16 keeps every matrix in 16 bits; Q8_0, Q5_0, Q4_0 have blocks of 32 integers with one 16-bit scale (4.5 bits/weight
for 4); K-quants have super-blocks of 256 with 4- to 8-bit scales of 8 or 16 groups, and more bits for some tensors: _S,
_M, _L say how many. I-quants take groups of 8 (IQ2) or 4 (IQ3) weights from a table of lattice points, or single ones
from stages.lib.frame.errors import UserError
from 16 uneven levels (IQ4). With `calibration` the rounding minds how large a column's inputs are; without it IQ2 is
noise, so llama.cpp refuses it. Cost: one pass over the weights, a forward pass with calibration; I-quants search, at
minutes per billion weights. TQ types hold blocks of 256 ternary weights and a 16-bit scale without any loss, in 1.69
(TQ1_0: five in a byte) or 2.06 bits (TQ2_0: four); only a model trained with `fake_quantize` has such weights, and
embedding and head become Q8_0. Norms stay 32-bit floats.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from stages.export import Export
from stages.export.parts import blocks, dense_model, gguf_file, gguf_vocabulary, importance_matrix
from stages.lib.frame.params import Calibration
from stages.lib.nets import rounding

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

NAME, load, RUN = "GGUF", dense_model.load, gguf_file.RUN


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
    vocabulary = gguf_vocabulary.read(tokenizer, model.config.vocab_size)
    target = folder / "model.gguf"
    if p.type in EXACT:
        gguf_file.write_file(model, vocabulary, target, p.type)
    else:
        full = folder / "full.gguf"
        gguf_file.write_file(model, vocabulary, full, "F32")
        importance = None
        if rows_NT is not None:
            importance = folder / "importance.dat"
            importance_matrix.save(importance_matrix.measure(model, rows_NT), gguf_file.renamer(model), importance)
        gguf_file.quantize(full, target, p.type, short(model, p.type) + rules(p.type), importance)
        for used in [full, *folder.glob("importance.dat")]:
            used.unlink()
    gguf_file.write_beside(tokenizer, model.config, folder)


def check(model: Any, p: Params) -> None:
    """Refuse what the file could only hold wrongly: llama.cpp would fall back to other types or other mathematics."""
    gguf_file.require_llama(model.config)
    if p.type in TERNARY:
        rounding.require_ternary(model, f"GGUF {p.type}")
    may_differ = p.fallback and p.type not in TERNARY
    for name, width in () if may_differ else blocks.short_rows(model, BLOCK[p.type]).items():
        raise UserError(
            f"{name} has rows of {width} weights; {p.type} needs multiples of {BLOCK[p.type]}: choose "
            f"fallback, or {' or '.join(t for t in BLOCK if width % BLOCK[t] == 0)}"
        )


def short(model: Any, type: str) -> list[str]:
    """Rules for the matrices whose rows hold no whole block: what mainstream llama.cpp falls back to."""
    rename = gguf_file.renamer(model)
    kinds = {rename(name).split(".")[-2] for name in blocks.short_rows(model, BLOCK[type])}
    heads = {"token_embd": "^token_embd=q8_0", "output": "^output=q8_0"}
    return [heads.get(kind, f"{kind}={FALLBACK.get(type[:2], 'iq4_nl')}") for kind in sorted(kinds)]


def rules(type: str) -> list[str]:
    """Of the types whose mix is ours."""
    if type not in MIX:
        return []
    head, values = MIX[type]
    return [f"^token_embd={head}", f"^output={head}", f"attn_v={values}", f"^blk={type.lower()}"]
