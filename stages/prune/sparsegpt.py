"""SparseGPT: drop weights one input after the other, let the later inputs make up for it. Frantar & Alistarh 2023,
arXiv:2301.00774, algorithm 1; the scores are Optimal Brain Surgeon's (Hassibi & Stork 1992), eq. 3.

    H = X^T X + damping mean(diag) I,  H^-1 = U^T U
    score_oi = (w_oi / U_ii)^2,  where w_oi goes: w_oj -= w_oi U_ij / U_ii for all j >= i

U_ii^2 is what [H^-1]_ii becomes once the inputs before i are settled, so U holds all the inverses that the rows share.
Scores compete within 128 inputs of all rows; with a pattern within a row's m neighbours, just before these are settled.
Blocks are pruned in order, each on what the pruned ones before it produce. Cost: three forward passes over the
calibration rows, and I^3 + O I^2 a layer. Shapes: O = out_features, I = in_features, N = rows, T = context, M = tokens
of a batch.
"""

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor, nn

from stages.lib.frame.params import Calibration
from stages.lib.nets import calibrate, masks
from stages.prune import Sparse

WIDTH = 128  # inputs that compete with each other, algorithm 1's B_s


class Params(Sparse):
    method: Literal["sparsegpt"]
    damping: PositiveFloat = 0.01  # share of the mean diagonal
    calibration: Calibration = Calibration()


@torch.no_grad()
def prune(model: nn.Module, rows_NT: Tensor, p: Params) -> nn.Module:
    if p.pattern:
        calibrate.check_widths(calibrate.linears(model), masks.sizes(p.pattern)[1], f"pattern {p.pattern}")
    for block, observe in calibrate.in_turn(model, rows_NT):
        layers = calibrate.linears(block)
        moments_II = input_moments(layers, observe)
        for name, layer in layers.items():
            layer.weight.copy_(sparsify(layer.weight.float(), moments_II[name], p))
    return model


def input_moments(layers: dict[str, nn.Linear], observe: calibrate.Observe) -> dict[str, Tensor]:
    """X^T X over all calibration tokens, (I, I) for each layer."""
    sums_II = {
        name: each.weight.new_zeros(2 * (each.in_features,), dtype=torch.float32) for name, each in layers.items()
    }

    def add(name: str, x_MI: Tensor) -> None:
        sums_II[name].addmm_(x_MI.float().T, x_MI.float())

    observe(layers, add)
    return sums_II


def sparsify(weight_OI: Tensor, moments_II: Tensor, p: Params) -> Tensor:
    """The layer with zeros in their places and what stays moved to make up for them."""
    weight_OI = weight_OI * (moments_II.diagonal() != 0)  # an input that is always zero needs no weight
    factor_II = inverse_factor(moments_II, p.damping)
    for start in range(0, weight_OI.shape[1], WIDTH):
        inner = slice(start, min(start + WIDTH, weight_OI.shape[1]))
        errors_OB = settle(weight_OI[:, inner], factor_II[inner, inner], p)
        weight_OI[:, inner.stop :] -= errors_OB @ factor_II[inner, inner.stop :]
    return weight_OI


def inverse_factor(moments_II: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with U^T U = H^-1."""
    diagonal_I = moments_II.diagonal()
    dead_I = (diagonal_I == 0).to(moments_II)
    hessian_II = moments_II + torch.diag(dead_I + damping * (diagonal_I + dead_I).mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian_II)), upper=True)


def settle(weight_OB: Tensor, factor_BB: Tensor, p: Params) -> Tensor:
    """Prune these columns in place, each after those before it; returns w / U_ii of what went, (O, B)."""
    scale_B = factor_BB.diagonal()
    errors_OB = torch.zeros_like(weight_OB)
    kept, of = masks.sizes(p.pattern) if p.pattern else (0, 0)
    stays_OB = torch.ones_like(weight_OB, dtype=torch.bool)
    if not p.pattern:
        score_1W = (weight_OB / scale_B).square().flatten()[None]
        stays_OB = masks.keep(score_1W, p.sparsity, None).view_as(weight_OB)
    for i in range(weight_OB.shape[1]):
        if p.pattern and i % of == 0:
            group = slice(i, i + of)
            stays_OB[:, group] = masks.best((weight_OB[:, group] / scale_B[group]).square(), kept)
        errors_OB[:, i] = weight_OB[:, i] * ~stays_OB[:, i] / scale_B[i]
        weight_OB[:, i:] -= errors_OB[:, i : i + 1] * factor_BB[i, i:]
        weight_OB[:, i] *= stays_OB[:, i]
    return errors_OB
