"""Prune: a dense model in, a sparse or a smaller one out.

In   model artefact, token artefact (calibration and held-out rows)
Out  model artefact, stored dense and read back; metrics: sparsity (share of zeros in the Linears a technique may
     change), sparsity_model (in all parameters), parameters, nonzero_parameters, and on held-out rows kl (parent ||
     pruned), same_top (share of positions), loss_before, loss_after (nats/token); where a technique has `ranks(model)`,
     rank and redundancy (the share of the full rank that is missing), layer by layer

A technique is one file here. It defines `Params` and `prune(model, rows, params) -> model`, where rows (N, T) are the
calibration rows, or None if its params ask for none. It may change the model in place; embeddings and head stay dense.
If it defines `score(model, rows, params) -> {name: tensor}`, the same whatever params ask for, then `prune` gets the
scores instead of the rows, and the stage keeps them, so that another shape needs no new forward pass. If its params
have `training`, `prune` gets `train(model)` instead, which trains on the training rows and keeps zeros. Recovery is
another variant: align or distill, with `keep_zeros` in its training.
"""

from typing import Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stages.lib.params import Calibration, Parent, Share, Variant


class Pruning(Variant):
    """What every technique's variants share."""

    model: Parent
    tokens: Parent
    calibration: Calibration | None = None
    held_out_rows: PositiveInt = 64


class Sparse(Pruning):
    """Single weights become zero, their place stays; how many is given as a share or as a pattern."""

    sparsity: Share | None = None
    pattern: Literal["2of4", "4of8"] | None = Field(None, validate_default=True)  # 2 of every 4 neighbours stay

    @field_validator("pattern")
    @classmethod
    def one_of_both(cls, pattern: str | None, info: ValidationInfo) -> str | None:
        if "sparsity" in info.data and (pattern is None) == (info.data["sparsity"] is None):
            raise PydanticCustomError("one_of", "give exactly one of sparsity and pattern")
        return pattern
