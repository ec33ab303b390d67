"""Hints: besides the predictions, the states inside. Romero et al. 2014 (FitNets), arXiv:1412.6550, eq. 3, with linear
projections and several layers at once as in Jiao et al. 2019, arXiv:1909.10351, eq. 8.

    alpha CE + (1 - alpha) T^2 KL(teacher || student) + beta mean_(i,j) |W_i h_i - h_j|^2 / |h_j|^2

Projections W_i are learnt beside the student and thrown away. Each layer's error is taken relative to its size: states
grow with depth, and plain squares would teach the last layer alone. From solutions, problems or the token rows of a
recording (at its temperature); the teacher runs live in all cases, so of a recording nothing else is used. Cost: a
teacher's forward pass a batch, and D E weights a pair. Shapes: see stages/distill/parts/layer_pairs.py.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from stages.distill.parts import layer_pairs, soft_targets


class Params(soft_targets.Soft):
    method: Literal["hidden"]
    layers: layer_pairs.Pairs | None = None  # [student, teacher]; none: evenly spread, last to last
    beta: NonNegativeFloat = 1.0


batches = soft_targets.batches


def prepare(student: Any, teacher: Any, p: Params) -> None:
    pairs = layer_pairs.pair(student, teacher, p.layers, p.teacher)
    student.scaffold = layer_pairs.projections(student, teacher, pairs)


def loss(student: Any, teacher: Any, batch: dict[str, Tensor], p: Params) -> Tensor:
    mine = layer_pairs.see(student, batch)
    with torch.no_grad():
        theirs = layer_pairs.see(teacher, batch)
    hard = F.cross_entropy(mine.logits.float(), mine.tokens)
    soft = soft_targets.whole(mine.logits, theirs.logits, p.temperature)
    pairs = layer_pairs.pair(student, teacher, p.layers, p.teacher)
    return soft_targets.mix(hard, soft, p) + p.beta * layer_pairs.distance(mine, theirs, student.scaffold, pairs)
