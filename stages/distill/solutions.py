"""Sequence-level: the student learns to write the teacher's verified solutions. Kim & Rush 2016, arXiv:1606.07947;
with reasoning: DeepSeek-R1, arXiv:2501.12948, section 2.4.

Given problems instead of traces it learns the data's own solutions: the control.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from torch import Tensor

from stages.distill import Batch, Distillation, Teacher
from stages.lib.nets import packed
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Solutions(Distillation):
    method: Literal["solutions"]
    context: int = Field(256, ge=16)

    def one_vocabulary(self) -> bool:
        return False

    def batches(self, tokenizer: "PreTrainedTokenizerFast", traces: Path) -> Callable[[int], Batch]:
        p = self.training
        return packing.batches(tokenizer, self.solved(traces), self.context, p.part_size, p.seed)

    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> Tensor:
        return packed.loss(student, batch)
