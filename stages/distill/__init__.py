"""Distill: a small model learns from what a teacher recorded.

In   model artefact (the student as it begins), traces (or problems: solutions from the data instead), tokens (held out)
Out  model artefact, curve.csv; metrics: loss_before, loss_after (nats/token, held out), parameters, tokens_seen

A technique is one file here. It defines `Params`, `batches(tokenizer, traces, params) -> (step -> batch)` and
`loss(student, batch, params) -> Tensor`, zero or the entropy of the data when the student equals its teacher.
"""

from pydantic import Field

from stages.lib.params import Parent, Variant
from stages.lib.training import Training


class Distillation(Variant):
    """What every technique's variants share."""

    model: Parent
    traces: Parent
    tokens: Parent
    training: Training
    held_out_rows: int = Field(64, ge=1)
