"""Magnitude: drop the smallest weights of every matrix. Han et al. 2015, arXiv:1506.02626, section 3.

The weights of a matrix compete with each other, those of an expert by themselves. No data, no retraining; cost: one
sort of the weights. Shapes: O = out_features, I = in_features.
"""

from typing import TYPE_CHECKING, Literal

import torch

from stages.lib.nets import masks
from stages.prune import Sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given


class Magnitude(Sparse):
    method: Literal["magnitude"]
    calibration: None = None

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        for matrix in self.matrices(model).values():
            weight_OI = matrix.weight
            score_1W = weight_OI.abs().flatten()[None]  # the whole matrix competes
            weight_OI *= masks.keep(score_1W, self.sparsity, self.pattern).view(weight_OI.shape)
        return model
