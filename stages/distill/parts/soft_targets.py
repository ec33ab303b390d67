"""What techniques with soft targets share: their params, their rows, and alpha CE + (1 - alpha) T^2 KL.

Hinton et al. 2015, arXiv:1503.02531, section 2. Shapes: N tokens, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from stages.distill import Distillation, solved
from stages.lib.frame.errors import UserError
from stages.lib.store import traces
from stages.lib.text import packing


class Soft(Distillation):
    alpha: float = Field(0.3, ge=0, le=1)  # weight of the data itself
    temperature: PositiveFloat = 2.0  # of a recording: what it was made at
    context: int = Field(256, ge=16)  # of solutions

    def one_vocabulary(self) -> bool:
        return self.alpha < 1


def batches(tokenizer: Any, folder: Path, p: Any) -> Callable[[int], dict[str, Tensor]]:
    """Recorded rows with what the teacher said of them, or solutions as packed replies."""
    size = p.training.batch_size // p.training.accumulation
    if not traces.distributions(folder):
        return packing.batches(tokenizer, solved(folder, p), p.context, size, p.training.seed)
    if p.examples is not None:
        raise UserError(f"params.yaml: examples counts solutions; {p.traces} holds distributions, `rows` of them")
    recorded = traces.about(folder)["technique"]["temperature"]
    if recorded != p.temperature:
        raise UserError(f"params.yaml: temperature is {p.temperature}, but {folder} was recorded at {recorded}")
    return traces.batches(folder, size)


def mix(hard: Tensor, soft: Tensor, p: Any) -> Tensor:
    return p.alpha * hard + (1 - p.alpha) * p.temperature**2 * soft


def whole(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
    """Mean KL(teacher || student) over the vocabulary, nats/token."""
    p_NV, q_NV = ((logits.float() / temperature).log_softmax(-1) for logits in (teacher_NV, student_NV))
    return F.kl_div(q_NV, p_NV, log_target=True, reduction="batchmean")
