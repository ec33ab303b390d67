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

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from stages.export import Export
from stages.export.parts import blocks, gguf_file, gguf_vocabulary, importance_matrix
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import rounding
from stages.lib.runtimes.mainstream import open_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stages.lib.runtimes.llama_cpp import LlamaCpp


class Format(NamedTuple):
    """What is particular about a type of file."""

    block: int  # weights that share a scale; a row of a matrix holds whole blocks
    calibration: Literal["useless", "useful", "needed"]
    fallback: str | None = None  # type of the matrices whose rows hold no whole block; none: they are refused
    mix: tuple[str, str] | None = None  # types of head and value projections, the rest in its own; none: llama.cpp's
    direct: bool = False  # there is one way to round, so it is written without llama.cpp's quantizer
    ternary: bool = False  # holds nothing but -s, 0 and s


# Ours is the mix where llama.cpp's would need longer rows or types that only its maker's fork knows; the head as in
# llama.cpp, the values one K-quant above the rest. Ours is the fallback of Q5: for llama.cpp's, q5_1, and other types
# with an offset ik_llama.cpp sums a block's inputs in 16 bits: 1.8 nats/token on SmolLM2-135M, mainstream 0.
FORMATS = {
    "F16": Format(1, "useless", direct=True),
    "Q8_0": Format(32, "useless"),
    "Q5_0": Format(32, "useful", mix=("q8_0", "q5_0")),
    "Q4_0": Format(32, "useful", mix=("q8_0", "q4_0")),
    "IQ4_NL": Format(32, "useful", mix=("q8_0", "iq4_nl")),
    "Q6_K": Format(256, "useful", "q8_0"),
    "Q5_K_M": Format(256, "useful", "q5_0"),
    "Q5_K_S": Format(256, "useful", "q5_0"),
    "Q4_K_M": Format(256, "useful", "q5_0"),
    "Q4_K_S": Format(256, "useful", "q5_0"),
    "Q3_K_L": Format(256, "useful", "iq4_nl"),
    "Q3_K_M": Format(256, "useful", "iq4_nl"),
    "Q3_K_S": Format(256, "useful", "iq4_nl"),
    "Q2_K": Format(256, "useful", "iq4_nl"),
    "IQ4_XS": Format(256, "useful", "iq4_nl", ("q6_K", "q5_K")),
    "IQ3_S": Format(256, "useful", "iq4_nl", ("q6_K", "q4_K")),
    "IQ3_XXS": Format(256, "useful", "iq4_nl", ("q5_K", "q4_K")),
    "IQ2_S": Format(256, "needed", "iq4_nl", ("q5_K", "q3_K")),
    "IQ2_XS": Format(256, "needed", "iq4_nl", ("q5_K", "q3_K")),
    "IQ2_XXS": Format(256, "needed", "iq4_nl", ("q5_K", "q3_K")),
    "TQ2_0": Format(256, "useless", direct=True, ternary=True),
    "TQ1_0": Format(256, "useless", direct=True, ternary=True),
}
FALLBACK_BLOCK = 32  # of every type that is a fallback

if TYPE_CHECKING:
    Type = str  # a checker wants the names spelt out
else:
    Type = Literal[tuple(FORMATS)]


class GGUF(Export):
    FORMAT = "GGUF {type}"
    RUN = gguf_file.RUN

    method: Literal["gguf"]
    type: Type
    fallback: bool = False  # may what has rows of no whole blocks have a type with smaller ones?
    calibration: Calibration | None = Field(None, validate_default=True)

    @field_validator("fallback")
    @classmethod
    def has_fallback(cls, fallback: bool, info: ValidationInfo) -> bool:
        if fallback and "type" in info.data and FORMATS[info.data["type"]].fallback is None:
            raise PydanticCustomError("in_vain", "{type} has no fallback, a type of smaller blocks", dict(info.data))
        return fallback

    @field_validator("calibration")
    @classmethod
    def minds_rows(cls, calibration: Calibration | None, info: ValidationInfo) -> Calibration | None:
        if "type" not in info.data:
            return calibration
        use = FORMATS[info.data["type"]].calibration
        if calibration is None and use == "needed":
            raise PydanticCustomError("needed", "IQ2 types need calibration rows")
        if calibration is not None and use == "useless":
            raise PydanticCustomError("in_vain", "{type} rounds the same with calibration and without", dict(info.data))
        return calibration

    def needs_rows(self) -> Calibration | None:
        return self.calibration

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        self.check(model)
        vocabulary = gguf_vocabulary.read(tokenizer, model.config.vocab_size)
        target, full, importance = folder / "model.gguf", folder / "full.gguf", None
        if FORMATS[self.type].direct:
            gguf_file.write_file(model, vocabulary, target, self.type)
        else:
            gguf_file.write_file(model, vocabulary, full, "F32")
            if self.calibration:
                importance = folder / "importance.dat"
                importance_matrix.save(importance_matrix.measure(model, rows), gguf_file.renamer(model), importance)
            gguf_file.quantize(full, target, self.type, self.rules(model), importance)
            full.unlink()
            if importance:
                importance.unlink()
        gguf_file.write_beside(tokenizer, model.config, folder)

    def open(self, folder: Path) -> "LlamaCpp":
        return open_gguf(folder)

    def check(self, model: Any) -> None:
        """Refuse what the file could only hold wrongly: llama.cpp would take other types or other mathematics."""
        gguf_file.require_llama(model.config, self.model)
        format = FORMATS[self.type]
        if format.ternary:
            rounding.require_ternary(model, f"GGUF {self.type}")
        block = FALLBACK_BLOCK if self.fallback else format.block
        for name, width in blocks.short_rows(model, block).items():
            others = " or ".join(type for type, other in FORMATS.items() if width % other.block == 0)
            choice = f"fallback, or {others}" if format.fallback and width % FALLBACK_BLOCK == 0 else others
            raise UserError(
                f"{name} has rows of {width} weights; {self.type} needs multiples of {block}: choose {choice}"
            )

    def rules(self, model: Any) -> list[str]:
        """Which matrices llama.cpp must not choose the type of: short rows, then those of a mix of ours."""
        format, rename = FORMATS[self.type], gguf_file.renamer(model)
        kinds = {rename(name).split(".")[-2] for name in blocks.short_rows(model, format.block)}
        heads = {"token_embd": "^token_embd=q8_0", "output": "^output=q8_0"}
        rules = [heads.get(kind, f"{kind}={format.fallback}") for kind in sorted(kinds)]
        if format.mix:
            head, values = format.mix
            rules += [f"^token_embd={head}", f"^output={head}", f"attn_v={values}", f"^blk={self.type.lower()}"]
        return rules
