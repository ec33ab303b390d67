"""What techniques that look inside the models share: which layers are paired, what they hold, learned projections.

Layer 0 is the embedding, layer i the output of block i; the last one is taken behind the final norm, where the head
reads it. Only positions that predict a learnt token count. Shapes: B rows, T positions, N learnt positions, H heads,
D hidden of the student, E hidden of the teacher.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, NamedTuple

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.nets import attention, packed
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pair = tuple[NonNegativeInt, NonNegativeInt]  # layer of the student, layer of the teacher
Pairs = Annotated[list[Pair], Field(min_length=1)]


class Inside(NamedTuple):
    """What one model holds on a batch."""

    states: list[Tensor]  # (N, D), embedding first
    maps: list[Tensor]  # (N, H, T), of every block; none unless asked for
    logits: Tensor  # (N, V)
    tokens: Tensor  # (N,), what comes next


def look_inside(model: "PreTrainedModel", batch: packing.Batch, maps: bool = False) -> Inside:
    # fused kernels never hold the maps
    with attention.attending(model, "eager") if maps else nullcontext():
        output, learnt_BT, tokens_N = packed.forward(model, batch, output_hidden_states=True, output_attentions=maps)
    states = [state_BTD[:, :-1][learnt_BT] for state_BTD in output.hidden_states]
    rows = [map_BHTT.transpose(1, 2)[:, :-1][learnt_BT].float() for map_BHTT in (output.attentions if maps else ())]
    return Inside(states, rows, output.logits, tokens_N)


def pair(
    student: "PreTrainedModel", teacher: "PreTrainedModel", wanted: list[Pair] | None, teacher_name: str
) -> list[Pair]:
    """The wanted pairs, or every block of the student with one of the teacher's: evenly spread, last to last."""
    own, others = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    for i, j in wanted or ():
        if i > own:
            raise UserError(f"layers has [{i}, {j}], but the student has no layer {i}; allowed: 0 to {own}")
        if j > others:
            raise UserError(f"layers has [{i}, {j}], but {teacher_name} has no layer {j}; allowed: 0 to {others}")
    return wanted or [(i, -(-i * others // own)) for i in range(1, own + 1)]


def projections(student: "PreTrainedModel", teacher: "PreTrainedModel", pairs: list[Pair]) -> nn.ModuleList:
    """One W_ED a pair, the identity where both are as wide: a student cut from its teacher shall keep its states.

    Of another width it begins at zero, which asks nothing of the student until W knows how the two bases relate.
    """
    sizes = student.config.hidden_size, teacher.config.hidden_size
    linears = [nn.Linear(*sizes, bias=False, device=student.device) for _ in pairs]
    for linear in linears:
        (nn.init.eye_ if sizes[0] == sizes[1] else nn.init.zeros_)(linear.weight)
    return nn.ModuleList(linears)


def distance(student: Inside, teacher: Inside, projections: nn.Module, pairs: list[Pair]) -> Tensor:
    """Mean over pairs of |W h_student - h_teacher|^2 / |h_teacher|^2: a share, whatever the scale of a layer."""
    total = torch.zeros((), device=student.tokens.device)
    for project_ED, (i, j) in zip(projections.children(), pairs, strict=True):
        target_NE = teacher.states[j].float()
        error_NE = project_ED(student.states[i]).float() - target_NE
        total = total + error_NE.square().sum() / target_NE.square().sum()
    return total / len(pairs)
