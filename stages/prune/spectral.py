"""Spectral: what of a weight matrix is no noise. Singular values below the Marchenko-Pastur edge go, so that each layer
gets the rank its own spectrum shows. arXiv:2602.22345; truncation as such: Gavish & Donoho 2014, arXiv:1305.5870.

    W = sum_k s_k u_k v_k^T,  s_k stays where s_k > e,  e = sigma (sqrt(O) + sqrt(I))

sigma^2 is the variance of independent entries whose spectrum fits the bulk of W's. With `parameters` the cut is the
multiple of every layer's own edge at which the factors, r (O + I) numbers a layer, hold that share of the weights.
The result is stored dense, since no exporter knows factors: fewer directions, no fewer bytes. No data; cost: a singular
value decomposition of every layer. Shapes: O = out_features, I = in_features, K = min(O, I) singular values.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from stages.lib.frame.params import Share
from stages.lib.nets import calibrate
from stages.prune import Pruning
from stages.prune.parts import marchenko_pastur


class Params(Pruning):
    method: Literal["spectral"]
    calibration: None = None
    parameters: Share | None = None  # in the factors, of those in the matrices; none: cut at the edge


@torch.no_grad()
def prune(model: nn.Module, rows_NT: Tensor | None, p: Params) -> nn.Module:
    layers = calibrate.linears(model)
    values_K = {name: torch.linalg.svdvals(layer.weight.double()) for name, layer in layers.items()}
    strengths_K = {name: each_K / edge(layers[name].weight, each_K) for name, each_K in values_K.items()}
    cut = budget(layers, strengths_K, p.parameters) if p.parameters else 1.0
    for name, layer in layers.items():
        left_OK, kept_K, right_KI = torch.linalg.svd(layer.weight.double(), full_matrices=False)
        kept_K = kept_K * (strengths_K[name] > cut)
        layer.weight.copy_(left_OK * kept_K @ right_KI)
    return model


def edge(weight_OI: Tensor, values_K: Tensor) -> float:
    """The largest singular value of noise alone; the longer side is the law's number of samples."""
    samples = max(weight_OI.shape)
    return math.sqrt(samples * marchenko_pastur.edge(values_K.square() / samples, samples))


def budget(layers: dict[str, nn.Linear], strengths_K: dict[str, Tensor], share: float) -> float:
    """The multiple of the edges above which the factors hold no more than `share` of the layers' weights."""
    costs = {name: layer.in_features + layer.out_features for name, layer in layers.items()}
    pairs = sorted((s, costs[name]) for name, each_K in strengths_K.items() for s in each_K.tolist())
    room = share * sum(layer.weight.numel() for layer in layers.values())
    while pairs and room >= pairs[-1][1]:
        room -= pairs.pop()[1]
    return pairs[-1][0] if pairs else 0.0


def ranks(model: nn.Module) -> dict[str, int]:
    """The numerical rank of every layer that a technique may change."""
    return {name: int(torch.linalg.matrix_rank(each.weight)) for name, each in calibrate.linears(model).items()}
