"""Weights as NF4, bitsandbytes' 4-bit codes, and back. Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3.

What the codes are: stages/quantize/nf4.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stages.lib.nets import anatomy, calibrate
from stages.lib.nets.anatomy import Matrix

BLOCK = 64  # weights with one scale


def matrices(model: nn.Module) -> dict[str, Matrix]:
    """What can be packed: every matrix of the blocks, GPT-2's too; a width that no blocks fill is refused."""
    layers = calibrate.linears(model)
    found = {name: Matrix(layer) for name, layer in layers.items()} | anatomy.matrices(model)
    calibrate.check_widths(found, BLOCK, f"nf4, block {BLOCK},")
    return found


def pack(model: nn.Module, found: Mapping[str, Matrix], double: bool) -> None:
    """In place; `double`: the scales as 8-bit codes too."""
    from bitsandbytes.nn import Linear4bit, Params4bit, modules

    # The kernel of CPUs with bf16 rounds inputs to 16 bits, and scales too: once it ran, other ones are saved.
    modules.has_avx512bf16 = lambda: False
    kind: Any = {"compress_statistics": double, "quant_type": "nf4"}
    for name, matrix in found.items():
        bias: Any = getattr(matrix.module, "bias", None)
        shape = matrix.in_features, matrix.out_features, bias is not None
        packed = Linear4bit(*shape, compute_dtype=torch.float32, **kind)
        packed.weight = Params4bit(matrix.weight.contiguous(), **kind | {"module": packed})
        packed.bias = bias
        model.set_submodule(name, packed.to(matrix.weight.device).eval())  # rounds


def unpack(model: nn.Module) -> None:
    """In place: the same function in plain weights."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    every: list[tuple[str, Any]] = [each for each in model.named_modules() if isinstance(each[1], Linear4bit)]
    for name, packed in every:
        weight = packed.weight
        plain = nn.Linear(packed.in_features, packed.out_features, packed.bias is not None, device="meta")
        plain.weight = nn.Parameter(dequantize_4bit(weight.data, weight.quant_state).float())
        plain.bias = packed.bias
        model.set_submodule(name, plain)
