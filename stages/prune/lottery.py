"""Lottery ticket: train, drop the smallest weights, take the rest back to where they began, again. Frankle & Carbin
2018, arXiv:1803.03635, section 1; back to an early checkpoint instead of random weights: arXiv:1912.05671, section 2.

After round r of R the share (1 - sparsity)^(r / R) of every layer is left. The parent is the point that weights are
taken back to: random weights, or a variant that was trained for a few steps (late rewinding). What comes out is the
trained ticket. Cost: R + 1 trainings of next-token loss on the rows, in which zeros stay zeros.
"""

import copy
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import nn

from stages.lib.frame.params import Share
from stages.lib.nets import calibrate, masks
from stages.lib.training.config import Training
from stages.prune import Pruning


class Params(Pruning):
    method: Literal["lottery"]
    sparsity: Share
    rounds: PositiveInt = 4
    training: Training  # of every round
    calibration: None = None


def prune(model: nn.Module, train: Callable[[nn.Module], None], p: Params) -> nn.Module:
    first = copy.deepcopy(model.state_dict())
    for number in range(1, p.rounds + 1):
        train(model)
        rewind(model, first, 1 - (1 - p.sparsity) ** (number / p.rounds))
    train(model)
    return model


@torch.no_grad()
def rewind(model: nn.Module, first: dict[str, torch.Tensor], sparsity: float) -> None:
    """The first weights where the present ones are large, in each layer by itself; what was dropped is zero already."""
    layers = calibrate.linears(model)
    stays = {
        name: masks.keep(layer.weight.abs().flatten()[None], sparsity, None).view_as(layer.weight)
        for name, layer in layers.items()
    }
    model.load_state_dict(first)
    for name, layer in layers.items():
        layer.weight *= stays[name]
