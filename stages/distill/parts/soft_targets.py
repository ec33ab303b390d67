"""What techniques with soft targets share: their params, their rows, and alpha CE + (1 - alpha) T^2 KL.

Hinton et al. 2015, arXiv:1503.02531, section 2. Shapes: N tokens, V vocabulary.
"""

from abc import ABC
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch.nn.functional as F
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from stages.distill import Batch, Distillation
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses
from stages.lib.store import traces as recordings
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class SoftTargets(Distillation, ABC):
    """From recorded token rows, or from solutions as packed replies."""

    alpha: float = Field(0.3, ge=0, le=1)  # weight of the data itself
    temperature: PositiveFloat = 2.0  # of a recording: what it was made at
    context: int = Field(256, ge=16)  # of solutions

    @model_validator(mode="after")
    def teacher_counts(self) -> "SoftTargets":
        if self.alpha == 1:
            self.refuse_idle("temperature", "with alpha below 1")
        return self

    def one_vocabulary(self) -> bool:
        return self.alpha < 1

    def batches(self, tokenizer: "PreTrainedTokenizerFast", traces: Path) -> Callable[[int], Batch]:
        p = self.training
        if not recordings.distributions(traces):
            return packing.batches(tokenizer, self.solved(traces), self.context, p.part_size, p.seed)
        for name in ("examples", "context"):
            if getattr(self, name) != type(self).model_fields[name].default:
                what = f"{name} is of solutions; {self.traces} holds distributions, whole rows: leave it out"
                raise UserError(f"params.yaml: {what}")
        recorded = recordings.about(traces)["technique"]["temperature"]
        if self.alpha < 1 and recorded != self.temperature:
            raise UserError(f"params.yaml: temperature is {self.temperature}, but {traces} was recorded at {recorded}")
        return recordings.batches(traces, p.part_size, p.seed)

    def mix(self, hard: Tensor, soft: Tensor) -> Tensor:
        return self.alpha * hard + (1 - self.alpha) * self.temperature**2 * soft


def divergence(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
    """Mean KL(teacher || student) over the vocabulary that both have rows for, nats/token."""
    student_NV, teacher_NV = losses.common(student_NV, teacher_NV)
    p_NV, q_NV = ((logits.float() / temperature).log_softmax(-1) for logits in (teacher_NV, student_NV))
    return F.kl_div(q_NV, p_NV, log_target=True, reduction="batchmean")
