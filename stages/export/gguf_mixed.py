"""GGUF with every matrix in a type of its own, so that a size is met at the least measured loss: EXL2's idea (Turboderp
2023, github.com/turboderp-org/exllamav2; stages/lib/nets/budget.py) on llama.cpp's types.

What a type does to a matrix is what llama.cpp's quantizer writes: the whole model once in every type, read back. The
file runs wherever a GGUF does. Cost: matrices x types passes of `measured_rows` calibration rows.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from stages.export import Export
from stages.export.parts import dense_model, gguf_file, gguf_vocabulary, importance_matrix
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import budget

Type = Literal["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"]
BLOCK = {type: 32 if type in ("IQ4_NL", "Q5_0", "Q8_0") else 256 for type in get_args(Type)}

NAME, load, RUN = "GGUF", dense_model.load, gguf_file.RUN


class Params(Export):
    method: Literal["gguf_mixed"]
    bits: float = Field(gt=2, le=9)  # a weight of the whole file, scales counted
    types: tuple[Type, ...] = Field(get_args(Type), min_length=2)
    calibration: Calibration = Calibration()
    measured_rows: PositiveInt = 8  # of the calibration rows, for the losses


def write(model: Any, tokenizer: Any, folder: Path, p: Params, rows_NT: Tensor) -> None:
    gguf_file.require_llama(model.config)
    types = {name: held(name, weight, p) for name, weight in model.named_parameters() if weight.ndim == 2}
    vocabulary, rename = gguf_vocabulary.read(tokenizer, model.config.vocab_size), gguf_file.renamer(model)
    with TemporaryDirectory(dir=folder) as place:
        full, importance = Path(place) / "full.gguf", Path(place) / "importance.dat"
        gguf_file.write_file(model, vocabulary, full, "F32")
        importance_matrix.save(importance_matrix.measure(model, rows_NT), rename, importance)

        def quantize(target: Path, chosen: dict[str, Type]) -> None:
            rules = [f"^{re.escape(rename(name))}$={ggml(type)}" for name, type in chosen.items()]
            commonest = Counter(chosen.values()).most_common(1)[0][0]  # what the file says that it is
            gguf_file.quantize(full, target, commonest, rules, importance)

        for each in p.types:
            quantize(full.with_name(each), {name: each if each in those else those[0] for name, those in types.items()})
        quantize(folder / "model.gguf", choose(model, types, Path(place), rows_NT, p))
    gguf_file.write_beside(tokenizer, model.config, folder)


def ggml(type: Type) -> str:
    """The type's name in rules."""
    return type.lower().replace("_k", "_K")


def held(name: str, weight_OI: Tensor, p: Params) -> list[Type]:
    """The types of which a row holds whole blocks."""
    fit: list[Type] = [type for type in p.types if weight_OI.shape[1] % BLOCK[type] == 0]
    if fit:
        return fit
    small = " or ".join(type for type, block in BLOCK.items() if block == 32)
    raise UserError(f"{name} has rows of {weight_OI.shape[1]} weights, which none of {p.types} can hold: add {small}")


def choose(model: Any, types: dict[str, list[Type]], files: Path, rows_NT: Tensor, p: Params) -> dict[str, Type]:
    """The type of every matrix; `files` holds the model in every one, under the type's name."""
    import gguf

    tensors = {type: {each.name: each for each in gguf.GGUFReader(files / type).tensors} for type in p.types}
    rename, weights = gguf_file.renamer(model), {name: model.get_parameter(name) for name in types}

    def forms(name: str, _: Tensor) -> Iterator[Tensor]:
        for type in types[name]:
            stored = tensors[type][rename(name)]
            weight = torch.from_numpy(gguf.dequantize(stored.data, stored.tensor_type))
            yield gguf_file.reorder(name, weight, model.config, back=True)

    costs = [[8 * int(tensors[type][rename(name)].n_bytes) for type in those] for name, those in types.items()]
    norms = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    room = int(p.bits * model.num_parameters()) - 32 * norms
    if (least := sum(map(min, costs))) > room:
        bits = (least + 32 * norms) / model.num_parameters()
        raise UserError(f"{p.bits} bits/weight are too few: types {p.types} take at least {bits:.2f} with scales")
    losses = budget.sensitivities(model, rows_NT[: p.measured_rows], weights, forms)
    picks = budget.choose(costs, losses, room)
    return {name: those[pick] for (name, those), pick in zip(types.items(), picks, strict=True)}
