"""Sequence-level: the student learns to write the teacher's verified solutions. Kim & Rush 2016, arXiv:1606.07947;
with reasoning: DeepSeek-R1, arXiv:2501.12948, section 2.4.

Given problems instead of traces it learns the data's own solutions: the control.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from stages.distill import Distillation, solved
from stages.lib.nets import packed
from stages.lib.text import packing


class Params(Distillation):
    method: Literal["solutions"]
    context: int = Field(256, ge=16)

    def one_vocabulary(self) -> bool:
        return False


def batches(tokenizer: Any, folder: Path, p: Params) -> Callable[[int], dict[str, Tensor]]:
    size = p.training.batch_size // p.training.accumulation
    return packing.batches(tokenizer, solved(folder, p), p.context, size, p.training.seed)


def loss(student: Any, _teacher: Any, batch: dict[str, Tensor], _p: Params) -> Tensor:
    return packed.loss(student, batch)
