"""Task-specific: attention maps and states first, then the predictions, on the task's own rows. Jiao et al. 2019
(TinyBERT), arXiv:1909.10351, eq. 7, 8, 10 and section 3.2.

    for `share` of the steps    mean_(i,j) [ sum_t (A_i - A_j)^2 ] + mean_(i,j) |W_i h_i - h_j|^2 / |h_j|^2
    then                        alpha CE + (1 - alpha) T^2 KL(teacher || student)

A are the maps behind the softmax (TinyBERT: before it), which every transformers model gives; their squares are summed
over the keys, so that longer rows do not make them small. Head by head where both models have as many; otherwise both
are averaged over their heads first: no head of one is any certain head of the other, but the mean is a distribution
again. Cost: a teacher's forward pass a batch, without fused attention in the first phase.
Shapes: N learnt positions, H heads, T keys; see also stages/distill/parts/layer_pairs.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from stages.distill import SCAFFOLD, Batch, Teacher
from stages.distill.parts import layer_pairs
from stages.distill.parts.soft_targets import SoftTargets, divergence
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class TaskSpecific(SoftTargets):
    method: Literal["task_specific"]
    alpha: float = Field(0.0, ge=0, le=1)
    temperature: PositiveFloat = 1.0
    layers: layer_pairs.Pairs | None = None  # [student, teacher]; none: evenly spread, last to last
    share: float = Field(0.5, ge=0, le=1)  # of the steps, for what is inside

    @model_validator(mode="after")
    def phases_count(self) -> "TaskSpecific":
        if self.share == 0:
            self.refuse_idle("layers", "with share above 0")
        if self.share == 1:
            self.refuse_idle("alpha", "with share below 1")
            self.refuse_idle("temperature", "with share below 1")
        return self

    def one_vocabulary(self) -> bool:
        return self.alpha < 1 or self.share > 0

    def batches(self, tokenizer: "PreTrainedTokenizerFast", traces: Path) -> Callable[[int], Batch]:
        p = self.training
        rows = packing.batches(tokenizer, self.solved(traces), self.context, p.part_size, p.seed)

        def numbered(index: int) -> Batch:
            """The step travels with the batch: a resumed run must be in the phase where it was."""
            return rows(index) | {"step": torch.tensor(index // p.parts)}

        return numbered

    def scaffold(self, student: "PreTrainedModel", teacher: Teacher) -> nn.ModuleList:
        for name, model in ((self.model, student), (self.teacher, teacher.model)):
            if anatomy.recurrent(model):
                raise UserError(
                    f"task_specific compares attention maps, and {name} has layers without; `hidden` needs none"
                )
        return layer_pairs.projections(student, teacher.model, self.pairs(student, teacher))

    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> Tensor:
        first_phase = bool(batch["step"] < self.share * self.training.steps)
        inside_student = layer_pairs.look_inside(student, batch, maps=first_phase)
        with torch.no_grad():
            inside_teacher = layer_pairs.look_inside(teacher.model, batch, maps=first_phase)
        if not first_phase:
            hard = F.cross_entropy(inside_student.logits.float(), inside_student.tokens)
            return self.mix(hard, divergence(inside_student.logits, inside_teacher.logits, self.temperature))
        projections, pairs = student.get_submodule(SCAFFOLD), self.pairs(student, teacher)
        distance = layer_pairs.distance(inside_student, inside_teacher, projections, pairs)
        return attention(inside_student, inside_teacher, pairs) + distance

    def pairs(self, student: "PreTrainedModel", teacher: Teacher) -> list[layer_pairs.Pair]:
        return layer_pairs.pair(student, teacher.model, self.layers, self.teacher)


def attention(student: layer_pairs.Inside, teacher: layer_pairs.Inside, pairs: list[layer_pairs.Pair]) -> Tensor:
    """Mean over pairs, positions and heads of the squared distance between two maps, in [0, 2]."""
    total = torch.zeros((), device=student.tokens.device)
    blocks = [(i - 1, j - 1) for i, j in pairs if i and j]  # an embedding attends to nothing
    for i, j in blocks:
        student_NHT, teacher_NHT = student.maps[i], teacher.maps[j]
        if student_NHT.shape[1] != teacher_NHT.shape[1]:
            student_NHT, teacher_NHT = student_NHT.mean(1, keepdim=True), teacher_NHT.mean(1, keepdim=True)
        total = total + (student_NHT - teacher_NHT).square().sum(-1).mean()
    return total / max(1, len(blocks))
