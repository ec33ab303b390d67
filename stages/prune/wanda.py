"""Wanda: drop the weights with the smallest |w_oi| * ||x_i||. Sun et al. 2023, arXiv:2306.11695, eq. 1, algorithm 1.

Scores compete within one output row; no weight update. Blocks are pruned in order, each on the inputs that the pruned
blocks before it produce. Cost: three forward passes over the calibration rows.
Shapes: O = out_features, I = in_features, N = rows, T = context, M = tokens of a batch.
"""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from stages.lib.frame.params import Calibration
from stages.lib.nets import calibrate, masks
from stages.prune import Sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given


class Wanda(Sparse):
    method: Literal["wanda"]
    calibration: Calibration = Calibration()

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        if self.pattern:
            calibrate.check_widths(calibrate.linears(model), masks.sizes(self.pattern)[1], f"pattern {self.pattern}")
        for block, observe in calibrate.in_turn(model, given.rows):
            layers = calibrate.linears(block)
            norms_I = input_norms(layers, observe)
            for name, layer in layers.items():
                score_OI = layer.weight.abs() * norms_I[name]
                layer.weight *= masks.keep(score_OI, self.sparsity, self.pattern)
        return model


def input_norms(layers: dict[str, nn.Linear], observe: calibrate.Observe) -> dict[str, Tensor]:
    """||x_i||_2 over all calibration tokens, (I,) for each layer."""
    squares_I = {name: torch.zeros_like(layer.weight[0], dtype=torch.float32) for name, layer in layers.items()}

    def add(name: str, x_MI: Tensor) -> None:
        squares_I[name] += x_MI.float().square().sum(0)

    observe(layers, add)
    return {name: square_I.sqrt() for name, square_I in squares_I.items()}
