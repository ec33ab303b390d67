"""SparseGPT: drop weights one input after the other, let the later inputs make up for it. Frantar & Alistarh 2023,
arXiv:2301.00774, algorithm 1; the scores are Optimal Brain Surgeon's (Hassibi & Stork 1992), eq. 3.

    H = X^T X + damping mean(diag) I,  H^-1 = U^T U
    score_oi = (w_oi / U_ii)^2,  where w_oi goes: w_oj -= w_oi U_ij / U_ii for all j >= i

U_ii^2 is what [H^-1]_ii becomes once the inputs before i are settled, so U holds all the inverses that the rows share.
Scores compete within 128 inputs of all rows; with a pattern within a row's m neighbours, just before these are settled.
Blocks are pruned in order, each on what the pruned ones before it produce. An expert is judged by the tokens that are
routed to it; where no calibration token comes, H is the identity: its smallest weights go, the others stay as they are.
Cost: three forward passes over the calibration rows, and I^3 + O I^2 a matrix.
Shapes: O = out_features, I = in_features, N = rows, T = context, M = tokens of a batch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from stages.lib.frame.params import Calibration
from stages.lib.nets import anatomy, calibrate, masks
from stages.lib.nets.anatomy import Matrix
from stages.prune import Sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given

WIDTH = 128  # inputs that compete with each other, algorithm 1's B_s


class SparseGPT(Sparse):
    method: Literal["sparsegpt"]
    damping: PositiveFloat = 0.01  # share of the mean diagonal
    calibration: Calibration = Calibration()

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        self.matrices(model)
        for block, observe in calibrate.in_turn(model, given.rows):
            matrices = anatomy.matrices_of(block)
            moments_II = input_moments(matrices, observe)
            for name, matrix in matrices.items():
                matrix.weight.copy_(self.sparsify(matrix.weight.float(), moments_II[name]))
        return model

    def sparsify(self, weight_OI: Tensor, moments_II: Tensor) -> Tensor:
        """The matrix with zeros in their places and what stays moved to make up for them."""
        weight_OI = weight_OI * (moments_II.diagonal() != 0)  # an input that is always zero needs no weight
        factor_II = inverse_factor(moments_II, self.damping)
        for start in range(0, weight_OI.shape[1], WIDTH):
            inner = slice(start, min(start + WIDTH, weight_OI.shape[1]))
            errors_OB = self.settle(weight_OI[:, inner], factor_II[inner, inner])
            weight_OI[:, inner.stop :] -= errors_OB @ factor_II[inner, inner.stop :]
        return weight_OI

    def settle(self, weight_OB: Tensor, factor_BB: Tensor) -> Tensor:
        """Prune these columns in place, each after those before it; returns w / U_ii of what went, (O, B)."""
        scale_B = factor_BB.diagonal()
        errors_OB = torch.zeros_like(weight_OB)
        kept, of = masks.sizes(self.pattern) if self.pattern else (0, 0)
        stays_OB = torch.ones_like(weight_OB, dtype=torch.bool)
        if not self.pattern:
            score_1W = (weight_OB / scale_B).square().flatten()[None]
            stays_OB = masks.keep(score_1W, self.sparsity, None).view(weight_OB.shape)
        for i in range(weight_OB.shape[1]):
            if self.pattern and i % of == 0:
                group = slice(i, i + of)
                stays_OB[:, group] = masks.best((weight_OB[:, group] / scale_B[group]).square(), kept)
            errors_OB[:, i] = weight_OB[:, i] * ~stays_OB[:, i] / scale_B[i]
            weight_OB[:, i:] -= errors_OB[:, i : i + 1] * factor_BB[i, i:]
            weight_OB[:, i] *= stays_OB[:, i]
        return errors_OB


def input_moments(matrices: Mapping[str, Matrix], observe: calibrate.Observe) -> dict[str, Tensor]:
    """X^T X over all calibration tokens, (I, I) for each matrix; the identity where no token came."""
    sums_II: dict[str, Tensor] = {}

    def add(name: str, x_MI: Tensor) -> None:
        if name not in sums_II:
            sums_II[name] = x_MI.new_zeros(2 * (x_MI.shape[1],), dtype=torch.float32)
        sums_II[name].addmm_(x_MI.float().T, x_MI.float())

    observe(matrices, add)
    for name, matrix in matrices.items():
        if name not in sums_II:
            sums_II[name] = torch.eye(matrix.in_features, device=matrix.weight.device)
    return sums_II


def inverse_factor(moments_II: Tensor, damping: float) -> Tensor:
    """U, upper triangular, with U^T U = H^-1."""
    diagonal_I = moments_II.diagonal()
    dead_I = (diagonal_I == 0).to(moments_II)
    hessian_II = moments_II + torch.diag(dead_I + damping * (diagonal_I + dead_I).mean())
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian_II)), upper=True)
