"""Lottery ticket: train, drop the smallest weights, take the rest back to where they began, again. Frankle & Carbin
2018, arXiv:1803.03635, section 1; back to an early checkpoint instead of random weights: arXiv:1912.05671, section 2.

After round r of R the share (1 - sparsity)^(r / R) of every matrix is left. The parent is the point that weights are
taken back to: random weights, or a variant that was trained for a few steps (late rewinding). What comes out is the
trained ticket. Cost: R + 1 trainings of next-token loss on the rows, in which zeros stay zeros.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator
from torch import Tensor

from stages.lib.frame.params import Share
from stages.lib.nets import masks
from stages.lib.nets.anatomy import Matrix
from stages.lib.training.config import Training
from stages.prune import Pruning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given


class Lottery(Pruning):
    method: Literal["lottery"]
    sparsity: Share
    rounds: PositiveInt = 4
    training: Training  # of every round
    calibration: None = None

    @model_validator(mode="after")
    def one_process(self) -> "Lottery":
        if self.training.devices > 1:
            raise ValueError("training: a ticket is found by many trainings in one process: leave out devices")
        return self

    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        model = model.float()  # small steps are lost in 16 bits
        matrices, first = self.matrices(model), copy.deepcopy(model.state_dict())
        for number in range(1, self.rounds + 1):
            given.train(model, self.training)
            stays = winners(matrices, 1 - (1 - self.sparsity) ** (number / self.rounds))
            model.load_state_dict(first)
            for name, matrix in matrices.items():
                matrix.weight.mul_(stays[name])
        given.train(model, self.training)
        return model


def winners(matrices: Mapping[str, Matrix], sparsity: float) -> dict[str, Tensor]:
    """True where weights are large, in each matrix by itself, (O, I); what was dropped is zero already."""
    return {
        name: masks.keep(matrix.weight.abs().flatten()[None], sparsity, None).view(matrix.weight.shape)
        for name, matrix in matrices.items()
    }
