"""Distill: a small model learns from a large one, live or from what it recorded.

In   model artefact (the student as it begins), teacher (model artefact), traces (or problems: solutions from the data
     instead), tokens (held out)
Out  model artefact, curve.csv; metrics: loss_before, loss_after (nats/token, held out), acceptance_before,
     acceptance_after (the share of a student's proposals that the teacher would accept, where the vocabulary is one),
     parameters, tokens_seen, and the training's arithmetic: student_flops, teacher_flops

Student and teacher must number tokens alike, or the stage refuses, unless a technique says that it doesn't compare
them. Their architectures may differ: stages/lib/nets/packed.py reads a packed batch with any. Progressive and self
(born again) distillation are no files: their teacher is another variant (Furlanello et al. 2018, arXiv:1805.04770).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveInt

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Model, Parent, Start, Tokens, Variant
from stages.lib.store import records
from stages.lib.text import packing
from stages.lib.training.config import Training

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Batch = dict[str, Any]  # tensors by name, and what else a loss needs
SCAFFOLD = "scaffold"  # the student's submodule that only training needs


class Teacher(NamedTuple):
    """The model that is learnt from, live, and its own tokenizer."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerFast"


class Taught(Parent):
    """What a teacher recorded, or the data's own solutions."""

    stages = ("traces", "data")


class Distillation(Variant, ABC):
    """The contract of a technique."""

    model: Start
    teacher: Model
    traces: Taught
    tokens: Tokens
    training: Training
    examples: PositiveInt | None = None  # how many of the solutions are learnt from, drawn by the training's seed
    text_rows: NonNegativeInt = 0  # of the token artefact, in every part of a batch beside its solutions
    held_out_rows: int = Field(64, ge=1)

    @abstractmethod
    def batches(self, tokenizer: "PreTrainedTokenizerFast", traces: Path) -> Callable[[int], Batch]:
        """Part number i of the training, of `training.part_size` rows; a function of i alone."""

    @abstractmethod
    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> "Tensor":
        """The mean loss of a part: zero, or the entropy of the data, when the student equals its teacher."""

    def terms(self, batch: Batch) -> "Tensor":
        """How many terms that mean is over, which a part weighs beside the others of its batch: learnt tokens. What is
        no mean over them, such as a distance of states relative to their size, is of a part in any case."""
        return packing.learnt(batch)

    def one_vocabulary(self) -> bool:
        """Whether the teacher reads the student's token numbers."""
        return True

    def scaffold(self, student: "PreTrainedModel", teacher: Teacher) -> "nn.Module | None":
        """Modules that only training needs, such as projections between the models' layers. The stage trains them as
        the student's submodule `scaffold` and takes them off again."""
        return None

    def solved(self, traces: Path) -> list[records.Record]:
        """The solved problems of the traces, or those `examples` of them that are taken as known."""
        import numpy as np

        rows = records.load(traces, "train")
        if self.examples is None:
            return rows
        if self.examples > len(rows):
            raise UserError(f"params.yaml: examples is {self.examples}, but {self.traces} has {len(rows)} solutions")
        return [rows[i] for i in np.random.default_rng(self.training.seed).permutation(len(rows))[: self.examples]]
