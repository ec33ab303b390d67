"""Magnitude: drop the smallest weights of every layer. Han et al. 2015, arXiv:1506.02626, section 3.

No data, no retraining; cost: one sort of the weights. Shapes: O = out_features, I = in_features.
"""

from typing import TYPE_CHECKING, Literal

import torch

from stages.lib.nets import calibrate, masks
from stages.prune import Sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given


class Magnitude(Sparse):
    method: Literal["magnitude"]
    calibration: None = None

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        layers = calibrate.linears(model)
        if self.pattern:
            calibrate.check_widths(layers, masks.sizes(self.pattern)[1], f"pattern {self.pattern}")
        for layer in layers.values():
            score_1W = layer.weight.abs().flatten()[None]  # the whole layer competes
            layer.weight *= masks.keep(score_1W, self.sparsity, self.pattern).view_as(layer.weight)
        return model
