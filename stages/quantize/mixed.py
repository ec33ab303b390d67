"""Mixed widths: every layer its own, so that a size budget is met at the least measured loss. The idea of EXL2
(Turboderp 2023, github.com/turboderp-org/exllamav2); as a problem in Dong et al. 2019, arXiv:1911.03852; the choice is
in stages/lib/nets/budget.py.

A width's loss is measured with rounding to nearest; then GPTQ rounds, each layer at its width. Cost: layers x widths
passes of `rows` calibration rows, then GPTQ's. O = out_features, G = groups of I inputs, L = layers, W = widths.
"""

from typing import Any, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import budget, calibrate
from stages.quantize import Grouped
from stages.quantize.parts import compressed


class Params(Grouped):
    method: Literal["mixed"]
    bits: float = Field(4.0, gt=1, le=8)  # a weight, scales counted
    widths: tuple[Literal[2, 3, 4, 5, 6, 8], ...] = Field((2, 3, 4, 6, 8), min_length=2)
    calibration: Calibration = Calibration()
    rows: PositiveInt = 8  # of the calibration rows, for measuring


def quantize(model: nn.Module, rows_NT: Tensor, p: Params) -> nn.Module:
    layers = calibrate.linears(model)
    calibrate.check_widths(layers, p.group_size, f"group_size {p.group_size}")
    costs_LW = [[size(layer.weight, bits, p) for bits in p.widths] for layer in layers.values()]
    weights = sum(layer.weight.numel() for layer in layers.values())
    if (least := sum(map(min, costs_LW)) / weights) > p.bits:
        raise UserError(f"{p.bits} bits/weight are too few: widths {p.widths} take at least {least:.2f} with scales")
    dense = {name: layer.weight for name, layer in layers.items()}
    losses_LW = budget.sensitivities(
        model, rows_NT[: p.rows], dense, lambda _, weight_OI: (rounded(weight_OI, bits, p) for bits in p.widths)
    )
    chosen = budget.choose(costs_LW, losses_LW, int(p.bits * weights))
    width = {name: p.widths[w] for name, w in zip(layers, chosen, strict=True)}
    return compressed.oneshot(model, [modifier(model, width, p)], rows_NT)


def modifier(model: nn.Module, width: dict[str, int], p: Params) -> object:
    from llmcompressor.modifiers.gptq import GPTQModifier

    groups = {
        f"bits_{bits}": {"targets": [name for name in width if width[name] == bits], "weights": p.integers(bits)}
        for bits in sorted(set(width.values()))
    }
    scheme: dict[str, Any] = compressed.scheme(model, {}) | {"config_groups": groups}
    return GPTQModifier(**scheme)


def size(weight_OI: Tensor, bits: int, p: Params) -> int:
    """Bits in the file: integers; a 16-bit scale, perhaps a zero point a group; the shape in 16 bytes."""
    groups = weight_OI.numel() // p.group_size
    return weight_OI.numel() * bits + groups * (16 + (0 if p.symmetric else bits)) + 128


def rounded(weight_OI: Tensor, bits: int, p: Params) -> Tensor:
    """To the nearest level of its group, as rtn: q in [low, -low - 1] around a zero point."""
    w_OGI, low = weight_OI.unflatten(1, (-1, p.group_size)), -(2 ** (bits - 1))
    if p.symmetric:
        step_OG1, zero_OG1 = w_OGI.abs().amax(-1, keepdim=True) / (-low - 0.5), 0
    else:
        bottom_OG1, top_OG1 = w_OGI.amin(-1, keepdim=True).clamp_max(0), w_OGI.amax(-1, keepdim=True).clamp_min(0)
        step_OG1 = (top_OG1 - bottom_OG1) / (2**bits - 1)
        zero_OG1 = (low - bottom_OG1 / step_OG1.clamp_min(1e-12)).round().clamp(low, -low - 1)
    q_OGI = (w_OGI / step_OG1.clamp_min(1e-12) + zero_OG1).round().clamp(low, -low - 1)
    return ((q_OGI - zero_OG1) * step_OG1).flatten(1)
