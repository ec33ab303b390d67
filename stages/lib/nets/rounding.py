"""Training with rounded weights: every pass rounds the latent weights that the optimizer moves. Straight-through
estimator, Bengio et al. 2013, arXiv:1308.3432, section 4: the gradient passes the rounding as if it were not there.

ternary     BitNet b1.58, Ma et al. 2024, arXiv:2402.17764, eq. 1 to 3: one scale s a matrix,

                w ~ s q,  s = mean|w|,  q = min(1, max(-1, round(w / s)))

            and the inputs of these layers in 8 bits, one scale a token: x ~ s round(x / s), s = max|x| / 127. BitNet's
            norm inside each layer is left out: the model stays a plain llama, which every runtime knows.
int2-int4   the grouped integers of stages/quantize/rtn.py, not symmetric: w ~ s (q - z), a scale s for `group_size`
            weights, whose levels span min(w, 0) to max(w, 0). The inputs are not rounded.

Scales are 16-bit floats, as files store them, so packing what was trained rounds nothing again. Embedding, norms and
head stay as they are. Cost: a few passes over the weights for each part of a batch. O = out_features, I = inputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Params
from stages.lib.nets import anatomy, calibrate

SMALLEST = 2.0**-14  # of the 16-bit floats that have all their 10 bits of fraction


class FakeQuantize(Params):
    """What the weights of every Linear but the head are rounded to."""

    weights: Literal["ternary", "int4", "int3", "int2"]
    group_size: Literal[32, 64, 128] = 128  # of integers: that of the rtn variant that packs them


@contextmanager
def rounding(model: Any, p: FakeQuantize | None) -> Iterator[None]:
    """Within, Linears compute with rounded weights and train latent ones; afterwards they have the rounded ones.

    The layers keep their Parameter objects, so optimizers may be made before or after.
    """
    if p is None:
        yield
        return
    layers = linears(model)
    three_values = p.weights == "ternary"
    if not three_values:
        calibrate.check_widths(layers, p.group_size, f"fake_quantize.group_size {p.group_size}")
    hooks = [layer.register_forward_pre_hook(round_inputs) for layer in layers.values() if three_values]
    for layer in layers.values():
        rounded = Ternary() if three_values else Integers(int(p.weights.removeprefix("int")), p.group_size)
        parametrize.register_parametrization(layer, "weight", rounded)
    try:
        yield
    finally:
        for layer in layers.values():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        for hook in hooks:
            hook.remove()


def linears(model: Any) -> dict[str, nn.Linear]:
    """The matrices of the blocks, not what a distillation hangs beside them; refused unless all are Linears."""
    layers = {}
    for name, matrix in anatomy.matrices(model).items():
        if not isinstance(matrix.module, nn.Linear):
            raise UserError(f"fake_quantize can round Linears; this {model.config.model_type} has others, like {name}")
        layers[name] = matrix.module
    return layers


def round_inputs(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return straight_through(inputs[0], eight_bits(inputs[0]))


class Ternary(nn.Module):
    def forward(self, latent_OI: Tensor) -> Tensor:
        return straight_through(latent_OI, ternary(latent_OI))

    def right_inverse(self, weight_OI: Tensor) -> Tensor:
        """Latent weights to begin with. Those of a ternary matrix grow by what its zeros take from mean|w|, so that the
        first pass gives the matrix itself."""
        if scale_of(weight_OI) is None:
            return weight_OI
        return weight_OI / (weight_OI != 0).float().mean().clamp_min(1e-12)


class Integers(nn.Module):
    def __init__(self, bits: int, group_size: int):
        super().__init__()
        self.bits, self.group_size = bits, group_size

    def forward(self, latent_OI: Tensor) -> Tensor:
        return straight_through(latent_OI, integers(latent_OI, self.bits, self.group_size))


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    """The value of `rounded`, the gradient of x; x - x and not rounded - x, whose sum with x would not be exact."""
    return rounded.detach() + (x - x.detach())


def ternary(weight_OI: Tensor) -> Tensor:
    scale = weight_OI.abs().mean().clamp_min(SMALLEST)
    return (weight_OI / scale).round().clamp(-1, 1) * scale.half().float()


def eight_bits(x_BTI: Tensor) -> Tensor:
    scale_BT1 = x_BTI.float().abs().amax(-1, keepdim=True).clamp_min(1e-5) / 127
    return ((x_BTI.float() / scale_BT1).round() * scale_BT1).to(x_BTI.dtype)


def integers(weight_OI: Tensor, bits: int, group_size: int) -> Tensor:
    """Where the rounded group is rounded again, its ends are again the ends, so its levels are the same."""
    w_OGI, low = weight_OI.unflatten(1, (-1, group_size)), -(2 ** (bits - 1))
    bottom_OG1, top_OG1 = w_OGI.amin(-1, keepdim=True).clamp_max(0), w_OGI.amax(-1, keepdim=True).clamp_min(0)
    step_OG1 = (top_OG1 - bottom_OG1) / (2**bits - 1)
    step_OG1 = (step_OG1.view(torch.int32) & -(1 << 13)).view(torch.float32)  # cut, or an end might miss its level
    step_OG1 = step_OG1.clamp_min(SMALLEST)
    zero_OG1 = (low - bottom_OG1 / step_OG1).round().clamp(low, -low - 1)
    q_OGI = (w_OGI / step_OG1 + zero_OG1).round().clamp(low, -low - 1)
    return ((q_OGI - zero_OG1) * step_OG1).flatten(1)


def scale_of(weight_OI: Tensor) -> Tensor | None:
    """The s of a matrix of -s, 0 and s; None of any other."""
    sizes_OI = weight_OI.abs()
    largest = sizes_OI.max()
    return largest if ((sizes_OI == 0) | (sizes_OI == largest)).all() else None


def require_ternary(model: nn.Module, place: str) -> None:
    """Refuse, before any work, weights of which three values would leave noise."""
    for name, layer in anatomy.matrices(model).items():
        if scale_of(layer.weight) is None:
            found = f"{name} has {len(layer.weight.unique()):,} different weights, not -s, 0 and s"
            raise UserError(f"{place}: {found}; train its parent with fake_quantize: {{weights: ternary}}")
