"""Soft targets: alpha CE + (1 - alpha) T^2 KL(teacher || student). Hinton et al. 2015, arXiv:1503.02531, section 2.

From recorded top-k distributions, or, where the traces are solutions, from the live teacher over the reply tokens. Of a
recording the KL is taken over the k tokens and one bucket for all others, so both sides are distributions: never
negative, zero when the student equals its teacher, at most the KL over the whole vocabulary. T is the recording's.
With alpha 1 the same rows are learnt without a teacher: the control. Shapes: B rows, T positions, K recorded tokens, N
reply tokens, V vocabulary.
"""

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.distill import Batch, Teacher
from stages.distill.parts.soft_targets import SoftTargets, divergence
from stages.lib.nets import losses, packed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Logits(SoftTargets):
    method: Literal["logits"]

    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> Tensor:
        if "logprob" in batch:
            logits_BTV = student(input_ids=batch["ids"], use_cache=False).logits
            hard = losses.next_token(logits_BTV, batch["ids"])
            return hard if self.alpha == 1 else self.mix(hard, recorded_divergence(logits_BTV, batch, self.temperature))
        student_NV, tokens_N = packed.logits(student, batch)
        hard = F.cross_entropy(student_NV.float(), tokens_N)
        if self.alpha == 1:
            return hard
        with torch.no_grad():
            teacher_NV = packed.logits(teacher.model, batch)[0]
        return self.mix(hard, divergence(student_NV, teacher_NV, self.temperature))


def recorded_divergence(logits_BTV: Tensor, batch: Batch, temperature: float) -> Tensor:
    """Mean KL(teacher || student) over k tokens and the rest, nats/token."""
    teacher_BTK, student_BTV = batch["logprob"].float(), (logits_BTV.float() / temperature).log_softmax(-1)
    student_BTK = student_BTV.gather(-1, batch["index"])
    kl_BT = (teacher_BTK.exp() * (teacher_BTK - student_BTK)).sum(-1)
    teacher_rest_BT, student_rest_BT = rest(teacher_BTK), rest(student_BTK)
    return (kl_BT + teacher_rest_BT * (teacher_rest_BT.log() - student_rest_BT.log())).mean()


def rest(logprob_BTK: Tensor) -> Tensor:
    """Probability outside the k tokens; float16 records can sum to a hair over one."""
    return (1 - logprob_BTK.exp().sum(-1)).clamp_min(1e-6)
