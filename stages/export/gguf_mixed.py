"""GGUF with every matrix in a type of its own, so that a size is met at the least measured loss: EXL2's idea (Turboderp
2023, github.com/turboderp-org/exllamav2; stages/lib/nets/budget.py) on llama.cpp's types.

What a type does to a matrix is what llama.cpp does, which rounds row by row, so in whatever order the file has the
rows. The file runs wherever a GGUF does. Cost: matrices x types passes of `measured_rows` calibration rows.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from stages.export import Export
from stages.export.parts import gguf_families, gguf_file, gguf_types, importance_matrix
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import anatomy, budget
from stages.lib.runtimes.llama_cpp import LlamaCpp

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

Type = Literal["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"]
KINDS = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}  # what a file of mostly this type says that it is


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

    def context(self, config: Any) -> int | None:
        return gguf_families.context(config)

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        gguf_families.require_known(model, self.model)
        with TemporaryDirectory(dir=folder) as place:
            full, names = gguf_file.write(model, tokenizer, Path(place) / "full.gguf")
            weights = self.weights(model, names, gguf_file.widths(full))
            types = {name: self.fitting(name, weight) for name, weight in weights.items()}
            importance = importance_matrix.measure(model, rows, names)
            minds = {name: importance.get(names[f"{name}.weight"][0]) for name in weights}
            room = int(self.bits * model.num_parameters()) - 8 * gguf_file.exact_bytes(full)
            chosen = self.choose(model, weights, types, minds, room, rows)
            tensors = {tensor: type for name, type in chosen.items() for tensor in names[f"{name}.weight"]}
            commonest = Counter(chosen.values()).most_common(1)[0][0]
            gguf_file.quantize(full, folder / "model.gguf", KINDS.get(commonest, commonest), tensors, importance)
        gguf_file.write_beside(tokenizer, model.config, folder)

    def open(self, folder: Path) -> LlamaCpp:
        return LlamaCpp(folder)

    def weights(self, model: Any, names: Mapping[str, list[str]], widths: Mapping[str, int]) -> dict[str, Tensor]:
        """What is rounded, (O, I): the matrices of the blocks, the embedding, and the head if it is another."""
        found = {name: each.weight for name, each in anatomy.matrices(model).items() if each.expert is None}
        ends = [each for each in (model.get_input_embeddings(), model.get_output_embeddings()) if each is not None]
        found |= {name: module.weight.detach() for name, module in model.named_modules() if module in ends}
        found = {name: weight for name, weight in found.items() if f"{name}.weight" in names}
        known = {tensor: weight.shape[1] for name, weight in found.items() for tensor in names[f"{name}.weight"]}
        if strange := next((tensor for tensor, width in widths.items() if known.get(tensor) != width), None):
            raise UserError(f"{self.model}: {strange} is no single matrix of {model.config.model_type}: choose gguf")
        return found

    def fitting(self, name: str, weight_OI: Tensor) -> list[Type]:
        """The types of which a row holds whole blocks."""
        width = weight_OI.shape[1]
        fits: list[Type] = [type for type in self.types if width % gguf_types.block(type) == 0]
        if not fits:
            small = " or ".join(type for type in get_args(Type) if width % gguf_types.block(type) == 0)
            raise UserError(f"{name} has rows of {width} weights, which none of {self.types} can hold: add {small}")
        return fits

    def choose(
        self,
        model: Any,
        weights: dict[str, Tensor],
        types: dict[str, list[Type]],
        importance: Mapping[str, "np.ndarray | None"],
        room: int,
        rows: Tensor,
    ) -> dict[str, Type]:
        """The type of every matrix, so that all together take `room` bits at most."""

        def forms(name: str, weight: Tensor) -> Iterator[Tensor]:
            for type in types[name]:
                yield torch.from_numpy(gguf_file.form(weight.float().cpu().numpy(), type, importance[name]))

        costs = [[gguf_types.bits(type, weights[name].numel()) for type in fits] for name, fits in types.items()]
        if (least := sum(map(min, costs))) > room:
            bits = self.bits + (least - room) / model.num_parameters()
            few = f"{self.bits} bits/weight are too few"
            raise UserError(f"{few}: types {self.types} take at least {bits:.2f} with scales")
        losses = budget.sensitivities(model, rows[: self.measured_rows], weights, forms)
        picks = budget.choose(costs, losses, room)
        return {name: fits[pick] for (name, fits), pick in zip(types.items(), picks, strict=True)}
