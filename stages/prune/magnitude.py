"""Magnitude: drop the smallest weights of every layer. Han et al. 2015, arXiv:1506.02626, section 3.

No data, no retraining; cost: one sort of the weights. Shapes: O = out_features, I = in_features.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from stages.lib import calibrate, masks
from stages.prune import Sparse


class Params(Sparse):
    method: Literal["magnitude"]
    calibration: None = None


@torch.no_grad()
def prune(model: nn.Module, rows_NT: Tensor | None, p: Params) -> nn.Module:
    layers = calibrate.linears(model)
    if p.pattern:
        calibrate.check_widths(layers, masks.sizes(p.pattern)[1], f"pattern {p.pattern}")
    for layer in layers.values():
        score_1W = layer.weight.abs().flatten()[None]  # the whole layer competes
        layer.weight *= masks.keep(score_1W, p.sparsity, p.pattern).view_as(layer.weight)
    return model
