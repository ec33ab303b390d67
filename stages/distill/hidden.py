"""Hints: besides the predictions, the states inside. Romero et al. 2014 (FitNets), arXiv:1412.6550, eq. 3, with linear
projections and several layers at once as in Jiao et al. 2019, arXiv:1909.10351, eq. 8.

    alpha CE + (1 - alpha) T^2 KL(teacher || student) + beta mean_(i,j) |W_i h_i - h_j|^2 / |h_j|^2

Projections W_i are learnt beside the student and thrown away. Each layer's error is taken relative to its size: states
grow with depth, and plain squares would teach the last layer alone. From solutions, problems or the token rows of a
recording (at its temperature); the teacher runs live in all cases, so of a recording nothing else is used. Cost: a
teacher's forward pass a batch, and D E weights a pair. Shapes: see stages/distill/parts/layer_pairs.py.
"""

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, model_validator
from torch import Tensor, nn

from stages.distill import SCAFFOLD, Batch, Teacher
from stages.distill.parts import layer_pairs
from stages.distill.parts.soft_targets import SoftTargets, divergence

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Hidden(SoftTargets):
    method: Literal["hidden"]
    layers: layer_pairs.Pairs | None = None  # [student, teacher]; none: evenly spread, last to last
    beta: NonNegativeFloat = 1.0

    @model_validator(mode="after")
    def layers_count(self) -> "Hidden":
        if self.beta == 0:
            self.refuse_idle("layers", "with beta above 0")
        return self

    def one_vocabulary(self) -> bool:
        return self.alpha < 1 or self.beta > 0

    def scaffold(self, student: "PreTrainedModel", teacher: Teacher) -> nn.ModuleList:
        return layer_pairs.projections(student, teacher.model, self.pairs(student, teacher))

    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> Tensor:
        inside_student = layer_pairs.look_inside(student, batch)
        with torch.no_grad():
            inside_teacher = layer_pairs.look_inside(teacher.model, batch)
        hard = F.cross_entropy(inside_student.logits.float(), inside_student.tokens)
        soft = divergence(inside_student.logits, inside_teacher.logits, self.temperature)
        projections, pairs = student.get_submodule(SCAFFOLD), self.pairs(student, teacher)
        distance = layer_pairs.distance(inside_student, inside_teacher, projections, pairs)
        return self.mix(hard, soft) + self.beta * distance

    def pairs(self, student: "PreTrainedModel", teacher: Teacher) -> list[layer_pairs.Pair]:
        return layer_pairs.pair(student, teacher.model, self.layers, self.teacher)
