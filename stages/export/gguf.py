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

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from stages.export import Export
from stages.export.parts import gguf_families, gguf_file, gguf_types, importance_matrix
from stages.export.parts.gguf_types import FORMATS
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import anatomy, rounding
from stages.lib.runtimes.llama_cpp import LlamaCpp

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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

    def context(self, config: Any) -> int | None:
        return gguf_families.context(config)

    def loss(self, model: Any) -> float:
        """Ten times as much with experts: the least rounding sends a token whose choice was near to another one."""
        return min(self.max_kl, FORMATS[self.type].loss * (10 if anatomy.routers(model) else 1))

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        gguf_families.require_known(model, self.model)
        if FORMATS[self.type].ternary:
            rounding.require_ternary(model, f"GGUF {self.type}")
        with TemporaryDirectory(dir=folder) as place:
            full, names = gguf_file.write(model, tokenizer, Path(place) / "full.gguf")
            types = self.types(gguf_file.widths(full))
            importance = importance_matrix.measure(model, rows, names) if self.calibration else {}
            if FORMATS[self.type].calibration == "needed":
                self.require_importance(name for name in types if types[name] == self.type and name not in importance)
            gguf_file.quantize(full, folder / "model.gguf", self.type, types, importance)
        gguf_file.write_beside(tokenizer, model.config, folder)

    def open(self, folder: Path) -> LlamaCpp:
        return LlamaCpp(folder)

    def types(self, widths: dict[str, int]) -> dict[str, str]:
        """Of every matrix of a file, by the length of its rows."""
        format, layers = FORMATS[self.type], gguf_file.layers(widths)
        headless = f"{gguf_types.HEAD}.weight" not in widths
        types = {name: gguf_types.type_of(format, name, layers, headless) for name in widths}
        for name, width in widths.items():
            if width % gguf_types.block(types[name]):
                types[name] = self.fallback_of(name, width)
        return types

    def fallback_of(self, name: str, width: int) -> str:
        format = FORMATS[self.type]
        fallback = "Q8_0" if name.startswith((gguf_types.HEAD, gguf_types.EMBEDDING)) else format.fallback
        if self.fallback and format.fallback and width % gguf_types.block(str(fallback)) == 0:
            return str(fallback)
        needed = gguf_types.block((self.fallback and format.fallback) or format.type)
        others = " or ".join(type for type, other in FORMATS.items() if width % gguf_types.block(other.type) == 0)
        falls = format.fallback and width % gguf_types.block(format.fallback) == 0
        raise UserError(
            f"{name} has rows of {width} weights; {self.type} needs multiples of {needed}: choose "
            f"{'fallback, or ' if falls else ''}{others}"
        )

    def require_importance(self, missing: Iterable[str]) -> None:
        for name in missing:
            raise UserError(f"calibration shows nothing of {name}, and {self.type} is noise without: choose IQ3_XXS")
