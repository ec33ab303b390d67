"""Distill: a small model learns from a large one, live or from what it recorded.

In   model artefact (the student as it begins), teacher (model artefact), traces (or problems: solutions from the data
     instead), tokens (held out)
Out  model artefact, curve.csv; metrics: loss_before, loss_after (nats/token, held out), acceptance_before,
     acceptance_after (the share of a student's proposals that the teacher would accept, where the vocabulary is one),
     parameters, tokens_seen, and the training's arithmetic: student_flops, teacher_flops

A technique is one file here. It defines `Params`, `batches(tokenizer, traces, params) -> (step -> batch)` and
`loss(student, teacher, batch, params) -> Tensor`, zero or the entropy of the data when the student equals its teacher.
Both must number tokens alike, or the stage refuses, unless `params.one_vocabulary()` is false; `teacher.tokenizer` is
the teacher's own. Their architectures may differ: stages/lib/text/packing.py reads a packed batch with any.
With `prepare(student, teacher, params)` a technique may hang modules that only training needs on `student.scaffold`;
the stage takes them off again. Progressive and self (born again) distillation are no files: their teacher is another
variant (Furlanello et al. 2018, arXiv:1805.04770).
"""

from pathlib import Path

from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Parent, Variant
from stages.lib.store import records
from stages.lib.training.config import Training


class Distillation(Variant):
    """What every technique's variants share."""

    model: Parent
    teacher: Parent
    traces: Parent
    tokens: Parent
    training: Training
    examples: PositiveInt | None = None  # how many of the solutions are learnt from, drawn by the training's seed
    text_rows: NonNegativeInt = 0  # of the token artefact, in every part of a batch beside its solutions
    held_out_rows: int = Field(64, ge=1)

    def one_vocabulary(self) -> bool:
        """Whether the loss compares the teacher's token numbers with the student's."""
        return True


def solved(folder: Path, p: Distillation) -> list[records.Record]:
    """The solved problems of the traces, or those `examples` of them that are taken as known."""
    import numpy as np

    rows = records.load(folder, "train")
    if p.examples is None:
        return rows
    if p.examples > len(rows):
        raise UserError(f"params.yaml: examples is {p.examples}, but {p.traces} has {len(rows)} solutions")
    return [rows[i] for i in np.random.default_rng(p.training.seed).permutation(len(rows))[: p.examples]]
