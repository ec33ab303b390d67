"""Mixed widths: every layer its own, so that a size budget is met at the least measured loss. The idea of EXL2
(Turboderp 2023, github.com/turboderp-org/exllamav2); the problem as in Dong et al. 2019 (HAWQ-V2), arXiv:1911.03852.

    minimise sum_l KL_l(b_l)  so that  sum_l size_l(b_l) <= bits * weights

KL_l(b) is measured: parent || parent with layer l alone rounded to b bits, nats/token; that the layers' losses add up
is the assumption. The choice is a knapsack, solved exactly but for the rounding of sizes to STEPS parts of the budget.
Then GPTQ rounds, each layer at its width. Cost: layers x widths passes of `rows` calibration rows, then GPTQ's.
O = out_features, I = inputs, L = layers, W = widths, R = units of the budget.
"""

from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from stages.lib import calibrate
from stages.lib.params import Calibration
from stages.quantize import Grouped, _compressed

STEPS = 100_000


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
        raise SystemExit(f"{p.bits} bits/weight are too few: widths {p.widths} take at least {least:.2f} with scales")
    chosen = choose(costs_LW, sensitivities(model, rows_NT[: p.rows], p), int(p.bits * weights))
    width = {name: p.widths[w] for name, w in zip(layers, chosen, strict=True)}
    return _compressed.oneshot(model, [modifier(model, width, p)], rows_NT)


def modifier(model: nn.Module, width: dict[str, int], p: Params) -> object:
    from llmcompressor.modifiers.gptq import GPTQModifier

    groups = {
        f"bits_{bits}": {"targets": [name for name in width if width[name] == bits], "weights": p.integers(bits)}
        for bits in sorted(set(width.values()))
    }
    scheme: dict[str, Any] = _compressed.scheme(model, {}) | {"config_groups": groups}
    return GPTQModifier(**scheme)


def size(weight_OI: Tensor, bits: int, p: Params) -> int:
    """Bits in the file: integers; a 16-bit scale, perhaps a zero point a group; the shape in 16 bytes."""
    groups = weight_OI.numel() // p.group_size
    return weight_OI.numel() * bits + groups * (16 + (0 if p.symmetric else bits)) + 128


@torch.no_grad()
def sensitivities(model: nn.Module, rows_NT: Tensor, p: Params) -> list[list[float]]:
    """KL_l(b), nats/token: the model is as before when this returns."""
    said = [log_probs(model, ids_BT) for ids_BT in rows_NT.split(8)]
    losses_LW = []
    for layer in calibrate.linears(model).values():
        dense_OI = layer.weight.clone()
        losses_LW.append([])
        for bits in p.widths:
            layer.weight.copy_(rounded(dense_OI, bits, p))
            pairs = [(before, log_probs(model, ids)) for before, ids in zip(said, rows_NT.split(8), strict=True)]
            kls = [(before.exp() * (before - after)).sum(-1).flatten() for before, after in pairs]
            losses_LW[-1].append(torch.cat(kls).mean().item())
        layer.weight.copy_(dense_OI)
    return losses_LW


def log_probs(model: nn.Module, ids_BT: Tensor) -> Tensor:
    return model(ids_BT.to(next(model.parameters()).device)).logits.float().log_softmax(-1)


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


def choose(costs_LW: list[list[int]], losses_LW: list[list[float]], budget: int) -> list[int]:
    """Which width of every layer has the least total loss at a total cost within the budget: dynamic programming."""
    unit = max(1, budget // STEPS)
    room = budget // unit
    least_R = torch.zeros(room + 1, dtype=torch.float64)  # loss of the layers so far within r units
    picks_LR, units_LW = [], [[-(-cost // unit) for cost in costs] for costs in costs_LW]
    for units, losses in zip(units_LW, losses_LW, strict=True):
        options_WR = torch.full((len(units), room + 1), torch.inf, dtype=torch.float64)
        for option_R, taken, loss in zip(options_WR, units, losses, strict=True):
            if taken <= room:
                option_R[taken:] = least_R[: room + 1 - taken] + loss
        least_R, pick_R = options_WR.min(0)
        picks_LR.append(pick_R)
    chosen, left = [], room
    for pick_R, units in zip(reversed(picks_LR), reversed(units_LW), strict=True):
        chosen.append(int(pick_R[left]))
        left -= units[chosen[-1]]
    return chosen[::-1]
