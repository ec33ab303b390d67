"""Soft targets: alpha CE + (1 - alpha) T^2 KL(teacher || student). Hinton et al. 2015, arXiv:1503.02531, section 2.

The KL is taken over the k recorded tokens and one bucket for all others, so both sides are distributions: never
negative, zero when the student equals its teacher, at most the KL over the whole vocabulary. T is the recording's.
With alpha 1 the same rows are learnt without a teacher: the control. Shapes: B rows, T positions, K recorded tokens, V
vocabulary.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from stages.distill import Distillation
from stages.lib import losses, traces


class Params(Distillation):
    method: Literal["logits"]
    alpha: float = Field(0.3, ge=0, le=1)  # weight of the data itself
    temperature: PositiveFloat = 2.0  # must be what the traces were recorded at


def batches(_tokenizer: Any, folder: Path, p: Params) -> Callable[[int], dict[str, Tensor]]:
    recorded = traces.about(folder)["technique"]["temperature"]
    if recorded != p.temperature:
        raise SystemExit(f"params.yaml: temperature is {p.temperature}, but {folder} was recorded at {recorded}")
    return traces.batches(folder, p.training.batch_size // p.training.accumulation)


def loss(student: Any, batch: dict[str, Tensor], p: Params) -> Tensor:
    logits_BTV = student(input_ids=batch["ids"], use_cache=False).logits
    hard = losses.next_token(logits_BTV, batch["ids"])
    if p.alpha == 1:
        return hard
    return p.alpha * hard + (1 - p.alpha) * p.temperature**2 * soft(logits_BTV, batch, p.temperature)


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
