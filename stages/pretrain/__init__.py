"""Pretrain: token rows in, a base model out.

In   tokens, tokenizer
Out  model artefact, curve.csv; metrics: loss_before, loss_after (nats/token, held out), parameters

A technique is one file here. It defines `Params`, `build(tokenizer, params) -> model` and
`loss(model, ids_BT) -> Tensor`. Without `training` the model is taken as `build` gives it.
"""

from pydantic import Field

from stages.lib.frame.params import Parent, Variant
from stages.lib.training.config import Training


class Pretraining(Variant):
    """What every technique's variants share. `tokens` names the tokenize variant: its rows and its tokenizer."""

    tokens: Parent
    training: Training | None = None
    held_out_rows: int = Field(64, ge=1)
