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
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from stages.distill import solved
from stages.distill.parts import layer_pairs, soft_targets
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.text import packing


class Params(soft_targets.Soft):
    method: Literal["task_specific"]
    alpha: float = Field(0.0, ge=0, le=1)
    temperature: PositiveFloat = 1.0
    layers: layer_pairs.Pairs | None = None  # [student, teacher]; none: evenly spread, last to last
    share: float = Field(0.5, ge=0, le=1)  # of the steps, for what is inside


def batches(tokenizer: Any, folder: Path, p: Params) -> Callable[[int], dict[str, Tensor]]:
    size = p.training.batch_size // p.training.accumulation
    rows = packing.batches(tokenizer, solved(folder, p), p.context, size, p.training.seed)

    def numbered(index: int) -> dict[str, Tensor]:
        """The step travels with the batch: a resumed run must be in the phase where it was."""
        return rows(index) | {"step": torch.tensor(index // p.training.accumulation)}

    return numbered


def prepare(student: Any, teacher: Any, p: Params) -> None:
    for name, model in ((p.model, student), (p.teacher, teacher)):
        if packed.recurrent(model):
            raise UserError(
                f"task_specific compares attention maps, and {name} has layers without; `hidden` needs none"
            )
    pairs = layer_pairs.pair(student, teacher, p.layers, p.teacher)
    student.scaffold = layer_pairs.projections(student, teacher, pairs)


def loss(student: Any, teacher: Any, batch: dict[str, Tensor], p: Params) -> Tensor:
    inside = bool(batch["step"] < p.share * p.training.steps)
    mine = layer_pairs.see(student, batch, maps=inside)
    with torch.no_grad():
        theirs = layer_pairs.see(teacher, batch, maps=inside)
    if not inside:
        hard = F.cross_entropy(mine.logits.float(), mine.tokens)
        return soft_targets.mix(hard, soft_targets.whole(mine.logits, theirs.logits, p.temperature), p)
    pairs = layer_pairs.pair(student, teacher, p.layers, p.teacher)
    return attention(mine, theirs, pairs) + layer_pairs.distance(mine, theirs, student.scaffold, pairs)


def attention(mine: layer_pairs.Seen, theirs: layer_pairs.Seen, pairs: list[layer_pairs.Pair]) -> Tensor:
    """Mean over pairs, positions and heads of the squared distance between two maps, in [0, 2]."""
    total = torch.zeros((), device=mine.tokens.device)
    blocks = [(i - 1, j - 1) for i, j in pairs if i and j]  # an embedding attends to nothing
    for i, j in blocks:
        a_NHT, b_NHT = mine.maps[i], theirs.maps[j]
        if a_NHT.shape[1] != b_NHT.shape[1]:
            a_NHT, b_NHT = a_NHT.mean(1, keepdim=True), b_NHT.mean(1, keepdim=True)
        total = total + (a_NHT - b_NHT).square().sum(-1).mean()
    return total / max(1, len(blocks))
