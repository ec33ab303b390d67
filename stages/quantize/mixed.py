"""Mixed widths: every layer its own, so that a size budget is met at the least measured loss. The idea of EXL2
(Turboderp 2023, github.com/turboderp-org/exllamav2); as a problem in Dong et al. 2019, arXiv:1911.03852; the choice is
in stages/lib/nets/budget.py.

A width's loss is measured with rounding to nearest; then GPTQ rounds, each layer at its width. Cost: layers x widths
passes of `measured_rows` calibration rows, then GPTQ's. O = out_features, G = groups of I inputs, L = layers,
W = widths.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt
from torch import Tensor

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import budget, calibrate
from stages.quantize import Grouped
from stages.quantize.parts import compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Mixed(Grouped):
    method: Literal["mixed"]
    bits: float = Field(4.0, gt=1, le=8)  # a weight, scales counted
    widths: tuple[Literal[2, 3, 4, 5, 6, 8], ...] = Field((2, 3, 4, 6, 8), min_length=2)
    calibration: Calibration = Calibration()
    measured_rows: PositiveInt = 8  # of the calibration rows, for the losses

    def quantize(self, model: "PreTrainedModel", rows: Tensor) -> "PreTrainedModel":
        layers = calibrate.linears(model)
        self.check_widths(layers)
        costs_LW = [[self.size(layer.weight, bits) for bits in self.widths] for layer in layers.values()]
        weights = sum(layer.weight.numel() for layer in layers.values())
        if (least := sum(map(min, costs_LW)) / weights) > self.bits:
            few = f"{self.bits} bits/weight are too few"
            raise UserError(f"{few}: widths {self.widths} take at least {least:.2f} with scales")
        dense = {name: layer.weight for name, layer in layers.items()}

        def forms(_: str, weight_OI: Tensor) -> Iterator[Tensor]:
            return (rounded(weight_OI, bits, self.group_size, self.symmetric) for bits in self.widths)

        losses_LW = budget.sensitivities(model, rows[: self.measured_rows], dense, forms)
        chosen = budget.choose(costs_LW, losses_LW, int(self.bits * weights))
        width = {name: self.widths[w] for name, w in zip(layers, chosen, strict=True)}
        return compressed.oneshot(model, [self.modifier(model, width)], rows)

    def size(self, weight_OI: Tensor, bits: int) -> int:
        """Bits in the file: integers; a 16-bit scale, perhaps a zero point a group; the shape in 16 bytes."""
        groups = weight_OI.numel() // self.group_size
        return weight_OI.numel() * bits + groups * (16 + (0 if self.symmetric else bits)) + 128

    def modifier(self, model: "PreTrainedModel", width: dict[str, int]) -> object:
        """GPTQ, each layer at its width."""
        from llmcompressor.modifiers.gptq import GPTQModifier

        groups = {
            f"bits_{bits}": {"targets": [name for name in width if width[name] == bits], "weights": self.integers(bits)}
            for bits in sorted(set(width.values()))
        }
        scheme: dict[str, Any] = compressed.scheme(model, {}) | {"config_groups": groups}
        return GPTQModifier(**scheme)


def rounded(weight_OI: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """To the nearest level of its group, as rtn: q in [low, -low - 1] around a zero point."""
    w_OGI, low = weight_OI.unflatten(1, (-1, group_size)), -(2 ** (bits - 1))
    if symmetric:
        step_OG1, zero_OG1 = w_OGI.abs().amax(-1, keepdim=True) / (-low - 0.5), 0
    else:
        bottom_OG1, top_OG1 = w_OGI.amin(-1, keepdim=True).clamp_max(0), w_OGI.amax(-1, keepdim=True).clamp_min(0)
        step_OG1 = (top_OG1 - bottom_OG1) / (2**bits - 1)
        zero_OG1 = (low - bottom_OG1 / step_OG1.clamp_min(1e-12)).round().clamp(low, -low - 1)
    q_OGI = (w_OGI / step_OG1.clamp_min(1e-12) + zero_OG1).round().clamp(low, -low - 1)
    return ((q_OGI - zero_OG1) * step_OG1).flatten(1)
