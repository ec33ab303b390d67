"""Wanda: drop the weights with the smallest |w_oi| * ||x_i||. Sun et al. 2023, arXiv:2306.11695, eq. 1, algorithm 1.

Scores compete within one output row; no weight update. Blocks are pruned in order, each on the inputs that the pruned
blocks before it produce. An expert is judged by the tokens that are routed to it; one that no calibration token reaches
is pruned by |w_oi| alone, in the same share. Cost: three forward passes over the calibration rows.
Shapes: O = out_features, I = in_features, N = rows, T = context, M = tokens of a batch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stages.lib.frame.params import Calibration
from stages.lib.nets import anatomy, calibrate, masks
from stages.lib.nets.anatomy import Matrix
from stages.prune import Sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given


class Wanda(Sparse):
    method: Literal["wanda"]
    calibration: Calibration = Calibration()

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        self.matrices(model)
        for block, observe in calibrate.in_turn(model, given.rows):
            matrices = anatomy.matrices_of(block)
            norms_I = input_norms(matrices, observe)
            for name, matrix in matrices.items():
                weight_OI = matrix.weight
                weight_OI *= masks.keep(weight_OI.abs() * norms_I[name], self.sparsity, self.pattern)
        return model


def input_norms(matrices: Mapping[str, Matrix], observe: calibrate.Observe) -> dict[str, Tensor]:
    """||x_i||_2 over all calibration tokens, (I,) for each matrix; ones where no token came."""
    squares_I: dict[str, Tensor] = {}

    def add(name: str, x_MI: Tensor) -> None:
        square_I = x_MI.float().square().sum(0)
        squares_I[name] = squares_I[name] + square_I if name in squares_I else square_I

    observe(matrices, add)
    return {
        name: squares_I[name].sqrt() if name in squares_I else torch.ones_like(matrix.weight[0], dtype=torch.float32)
        for name, matrix in matrices.items()
    }
