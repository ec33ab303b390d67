"""Weights as NF4, bitsandbytes' 4-bit codes, and back. Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3.

What the codes are: stages/quantize/nf4.py.
"""

from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64  # weights with one scale


def packed(weight_OI: Tensor, bias: Any, double: bool) -> nn.Module:
    """The layer of these weights, rounded; `double`: the scales as 8-bit codes too."""
    from bitsandbytes.nn import Linear4bit, Params4bit, modules

    # The kernel of CPUs with bf16 rounds inputs to 16 bits, and scales too: once it ran, other ones are saved.
    modules.has_avx512bf16 = lambda: False
    kind: Any = {"compress_statistics": double, "quant_type": "nf4"}
    outputs, inputs = weight_OI.shape
    layer = Linear4bit(inputs, outputs, bias is not None, compute_dtype=torch.float32, **kind)
    layer.weight = Params4bit(weight_OI.contiguous(), **kind | {"module": layer})
    layer.bias = bias
    return layer.to(weight_OI.device).eval()  # rounds


def unpack(model: nn.Module) -> None:
    """In place: the same function in plain weights."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    every: list[tuple[str, Any]] = [each for each in model.named_modules() if isinstance(each[1], Linear4bit)]
    for name, layer in every:
        weight = layer.weight
        plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(dequantize_4bit(weight.data, weight.quant_state).float())
        plain.bias = layer.bias
        model.set_submodule(name, plain)
