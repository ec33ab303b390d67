"""Spectral: what of a weight matrix is no noise. Singular values below the Marchenko-Pastur edge go, so that each
matrix gets the rank its own spectrum shows. arXiv:2602.22345; truncation as such: Gavish & Donoho 2014,
arXiv:1305.5870.

    W = sum_k s_k u_k v_k^T,  s_k stays where s_k > e,  e = sigma (sqrt(O) + sqrt(I))

sigma^2 is the variance of independent entries whose spectrum fits the bulk of W's. With `parameters` the cut is the
multiple of every matrix's own edge at which the factors, r (O + I) numbers a matrix, hold that share of the weights.
The result is stored dense, since no exporter knows factors: fewer directions, no fewer bytes. No data; cost: a singular
value decomposition of every matrix. Shapes: O = out_features, I = in_features, K = min(O, I) singular values.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stages.lib.frame.params import Share
from stages.lib.nets.anatomy import Matrix
from stages.prune import Pruning
from stages.prune.parts import marchenko_pastur

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given


class Spectral(Pruning):
    method: Literal["spectral"]
    calibration: None = None
    parameters: Share | None = None  # in the factors, of those in the matrices; none: cut at the edge

    @torch.no_grad()
    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        model = model.float()  # rounded to 16 bits every matrix has its full rank again
        matrices = self.matrices(model)
        values_K = {name: torch.linalg.svdvals(matrix.weight.double()) for name, matrix in matrices.items()}
        strengths_K = {name: own_K / edge(matrices[name].weight, own_K) for name, own_K in values_K.items()}
        cut = budget(matrices, strengths_K, self.parameters) if self.parameters else 1.0
        for name, matrix in matrices.items():
            left_OK, kept_K, right_KI = torch.linalg.svd(matrix.weight.double(), full_matrices=False)
            kept_K = kept_K * (strengths_K[name] > cut)
            matrix.weight.copy_(left_OK * kept_K @ right_KI)
        return model

    def ranks(self, model: "PreTrainedModel") -> dict[str, int]:
        """The numerical rank of every matrix that a technique may change."""
        return {name: int(torch.linalg.matrix_rank(matrix.weight)) for name, matrix in self.matrices(model).items()}


def edge(weight_OI: Tensor, values_K: Tensor) -> float:
    """The largest singular value of noise alone; the longer side is the law's number of samples."""
    samples = max(weight_OI.shape)
    return math.sqrt(samples * marchenko_pastur.edge(values_K.square() / samples, samples))


def budget(matrices: Mapping[str, Matrix], strengths_K: Mapping[str, Tensor], share: float) -> float:
    """The multiple of the edges above which the factors hold no more than `share` of the matrices' weights."""
    costs = {name: matrix.in_features + matrix.out_features for name, matrix in matrices.items()}
    pairs = sorted((s, costs[name]) for name, own_K in strengths_K.items() for s in own_K.tolist())
    room = share * sum(matrix.weight.numel() for matrix in matrices.values())
    while pairs and room >= pairs[-1][1]:
        room -= pairs.pop()[1]
    return pairs[-1][0] if pairs else 0.0
