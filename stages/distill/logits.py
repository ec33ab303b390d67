"""Soft targets: alpha CE + (1 - alpha) T^2 KL(teacher || student). Hinton et al. 2015, arXiv:1503.02531, section 2.

From recorded top-k distributions, or, where the traces are solutions, from the live teacher over the reply tokens. Of a
recording the KL is taken over the k tokens and one bucket for all others, so both sides are distributions: never
negative, zero when the student equals its teacher, at most the KL over the whole vocabulary. T is the recording's.
With alpha 1 the same rows are learnt without a teacher: the control. Shapes: B rows, T positions, K recorded tokens, N
reply tokens, V vocabulary.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.distill.parts import soft_targets
from stages.lib.nets import losses, packed


class Params(soft_targets.Soft):
    method: Literal["logits"]


batches = soft_targets.batches


def loss(student: Any, teacher: Any, batch: dict[str, Tensor], p: Params) -> Tensor:
    if "logprob" in batch:
        output_BTV = student(input_ids=batch["ids"], use_cache=False).logits
        hard = losses.next_token(output_BTV, batch["ids"])
        return hard if p.alpha == 1 else soft_targets.mix(hard, soft(output_BTV, batch, p.temperature), p)
    output_NV, tokens_N = packed.logits(student, batch)
    hard = F.cross_entropy(output_NV.float(), tokens_N)
    if p.alpha == 1:
        return hard
    with torch.no_grad():
        teacher_NV = packed.logits(teacher, batch)[0]
    return soft_targets.mix(hard, soft_targets.whole(output_NV, teacher_NV, p.temperature), p)


def soft(logits_BTV: Tensor, batch: dict[str, Tensor], temperature: float) -> Tensor:
    """Mean KL(teacher || student) over k tokens and the rest, nats/token."""
    teacher_BTK, student_BTV = batch["logprob"].float(), (logits_BTV.float() / temperature).log_softmax(-1)
    student_BTK = student_BTV.gather(-1, batch["index"])
    kl_BT = (teacher_BTK.exp() * (teacher_BTK - student_BTK)).sum(-1)
    teacher_rest_BT, student_rest_BT = rest(teacher_BTK), rest(student_BTK)
    return (kl_BT + teacher_rest_BT * (teacher_rest_BT.log() - student_rest_BT.log())).mean()


def rest(logprob_BTK: Tensor) -> Tensor:
    """Probability outside the k tokens; float16 records can sum to a hair over one."""
    return (1 - logprob_BTK.exp().sum(-1)).clamp_min(1e-6)
