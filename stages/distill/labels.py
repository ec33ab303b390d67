"""Labels: the student says each label as often as its teacher. Hinton et al. 2015, arXiv:1503.02531, section 2, for
the first token of an answer:

    - sum_l p_teacher(l | x) log p_student(token of l | x)

over the student's whole vocabulary, so that it says nothing but labels. From traces/labels; given labelled data
instead, it learns their labels alone: the control. Student and teacher may have different vocabularies.
Shapes: N texts of a batch, L labels, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.distill import Batch, Distillation, Teacher
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.text import labels, packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stages.lib.store.records import Record


class Labels(Distillation):
    method: Literal["labels"]
    context: int = Field(256, ge=16)

    def one_vocabulary(self) -> bool:
        return False

    def batches(self, tokenizer: "PreTrainedTokenizerFast", traces: Path) -> Callable[[int], Batch]:
        p, rows = self.training, self.solved(traces)
        task = labels.require(rows, self.traces, ": take `solutions`")
        likely_ML = torch.tensor([likely(row, task, str(self.traces)) for row in rows])
        token_L = torch.tensor(labels.tokens(tokenizer, task.labels))
        packs = packing.shuffled(tokenizer, packing.numbered(tokenizer, rows), self.context, p.part_size, p.seed)

        def with_targets(index: int) -> Batch:
            batch = packs(index)
            numbers_N = batch["labels"][batch["labels"] != packing.IGNORE]
            return batch | {"targets": likely_ML[numbers_N], "tokens": token_L}

        return with_targets

    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> Tensor:
        logits_NV, _ = packed.logits(student, batch)
        return -(batch["targets"] * logits_NV.float().log_softmax(-1)[:, batch["tokens"]]).sum(-1).mean()


def likely(row: "Record", task: labels.Task, place: str) -> list[float]:
    """Each label's probability, by a teacher or by the label itself."""
    if "probabilities" in row:
        return row["probabilities"]
    if "solution" not in row:
        raise UserError(f"{place}: record '{row['id']}' has no label; traces/labels asks a teacher for them")
    return [float(label == row["solution"]) for label in task.labels]
