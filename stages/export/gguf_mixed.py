"""GGUF with every matrix in a type of its own, so that a size is met at the least measured loss: EXL2's idea (Turboderp
2023, github.com/turboderp-org/exllamav2; stages/lib/nets/budget.py) on llama.cpp's types.

What a type does to a matrix is what llama.cpp's quantizer writes: the whole model once in every type, read back. The
file runs wherever a GGUF does. Cost: matrices x types passes of `measured_rows` calibration rows.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from stages.export import Export
from stages.export.parts import gguf_file, gguf_vocabulary, importance_matrix
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import budget
from stages.lib.runtimes.mainstream import open_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stages.lib.runtimes.llama_cpp import LlamaCpp

Type = Literal["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"]
SMALL = ("IQ4_NL", "Q5_0", "Q8_0")  # blocks of 32 weights; the others have 256


class GGUFMixed(Export):
    FORMAT = "GGUF of mixed types, at most {bits} bits/weight"
    RUN = gguf_file.RUN

    method: Literal["gguf_mixed"]
    bits: float = Field(gt=2, le=9)  # a weight of the whole file, scales counted
    types: tuple[Type, ...] = Field(get_args(Type), min_length=2)
    calibration: Calibration = Calibration()
    measured_rows: PositiveInt = 8  # of the calibration rows, for the losses

    def needs_rows(self) -> Calibration:
        return self.calibration

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        gguf_file.require_llama(model.config, self.model)
        types = {name: self.fitting(name, weight) for name, weight in model.named_parameters() if weight.ndim == 2}
        vocabulary, rename = gguf_vocabulary.read(tokenizer, model.config.vocab_size), gguf_file.renamer(model)
        with TemporaryDirectory(dir=folder) as place:
            full, importance = Path(place) / "full.gguf", Path(place) / "importance.dat"
            gguf_file.write_file(model, vocabulary, full, "F32")
            importance_matrix.save(importance_matrix.measure(model, rows), rename, importance)

            def quantize(target: Path, chosen: Mapping[str, Type]) -> None:
                rules = [f"^{re.escape(rename(name))}$={ggml(type)}" for name, type in chosen.items()]
                commonest = Counter(chosen.values()).most_common(1)[0][0]  # what the file says that it is
                gguf_file.quantize(full, target, commonest, rules, importance)

            for type in self.types:
                quantize(full.with_name(type), {n: type if type in fits else fits[0] for n, fits in types.items()})
            quantize(folder / "model.gguf", self.choose(model, types, Path(place), rows))
        gguf_file.write_beside(tokenizer, model.config, folder)

    def open(self, folder: Path) -> "LlamaCpp":
        return open_gguf(folder)

    def fitting(self, name: str, weight_OI: Tensor) -> list[Type]:
        """The types of which a row holds whole blocks."""
        width = weight_OI.shape[1]
        fits: list[Type] = [type for type in self.types if width % (32 if type in SMALL else 256) == 0]
        if not fits:
            none = f"which none of {self.types} can hold: add {' or '.join(SMALL)}"
            raise UserError(f"{name} has rows of {width} weights, {none}")
        return fits

    def choose(self, model: Any, types: dict[str, list[Type]], uniform: Path, rows: Tensor) -> dict[str, Type]:
        """The type of every matrix; the folder `uniform` holds the model in every type, under the type's name."""
        import gguf

        stored = {type: {t.name: t for t in gguf.GGUFReader(uniform / type).tensors} for type in self.types}
        rename, rotated = gguf_file.renamer(model), gguf_file.rotated(model)
        weights = {name: model.get_parameter(name) for name in types}

        def forms(name: str, _: Tensor) -> Iterator[Tensor]:
            for type in types[name]:
                tensor = stored[type][rename(name)]
                weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type))
                yield gguf_file.reorder(weight, rotated[name], back=True) if name in rotated else weight

        costs = [[8 * int(stored[type][rename(name)].n_bytes) for type in fits] for name, fits in types.items()]
        norms = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
        room = int(self.bits * model.num_parameters()) - 32 * norms
        if (least := sum(map(min, costs))) > room:
            bits = (least + 32 * norms) / model.num_parameters()
            few = f"{self.bits} bits/weight are too few"
            raise UserError(f"{few}: types {self.types} take at least {bits:.2f} with scales")
        losses = budget.sensitivities(model, rows[: self.measured_rows], weights, forms)
        picks = budget.choose(costs, losses, room)
        return {name: fits[pick] for (name, fits), pick in zip(types.items(), picks, strict=True)}


def ggml(type: Type) -> str:
    """The type's name in rules."""
    return type.lower().replace("_k", "_K")
