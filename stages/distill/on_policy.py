"""On-policy: the student learns from the teacher's word on what the student itself writes. Agarwal et al. 2023 (GKD),
arXiv:2306.13649, algorithm 1 and eq. 1.

    L = beta KL(p || m) + (1 - beta) KL(q || m)      m = beta p + (1 - beta) q      p teacher, q student

over the tokens of a reply: with probability `on_policy` one that the student samples for the prompt, else the data's.
beta 0 is KL(p || q); beta 1 is KL(q || p), with `on_policy` 1 what MiniLLM minimises (Gu et al. 2023,
arXiv:2306.08543), but no gradient goes through the sampling. Cost: `max_new_tokens` forward passes of the student
before a step on its own samples. Shapes: B prompts, R tokens of a reply, N of all, V vocabulary.

What a student that has learnt little writes no teacher would, whose word on it is worth little (arXiv:2603.25562):

warm_up         the share of the steps that learn from the data first, by KL(p || q)
top_k           p and q are compared on the teacher's k likeliest tokens alone, both renormalised
cut_off: false  replies that did not end within `max_new_tokens` are not learnt from, or they would grow
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from stages.distill import Batch, Distillation, Teacher
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses, packed
from stages.lib.sampling import rollouts
from stages.lib.text import chat, packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class OnPolicy(Distillation):
    method: Literal["on_policy"]
    on_policy: float = Field(0.5, ge=0, le=1)  # lambda: share of the batches that the student writes
    beta: float = Field(0.5, ge=0, le=1)
    temperature: PositiveFloat = 1.0  # of the student's samples
    max_new_tokens: PositiveInt = 64
    warm_up: float = Field(0.0, ge=0, lt=1)
    top_k: int | None = Field(None, ge=2)
    cut_off: bool = True
    context: int = Field(256, ge=16)

    @model_validator(mode="after")
    def samples_count(self) -> "OnPolicy":
        if self.on_policy == 0:
            for name in ("temperature", "max_new_tokens", "warm_up", "cut_off"):
                self.refuse_idle(name, "with on_policy above 0")
        else:
            self.training.require_whole_model()
        if self.on_policy and self.text_rows:
            raise ValueError("text_rows stand beside packed replies, not beside what the student writes: leave it out")
        return self

    def batches(self, tokenizer: "PreTrainedTokenizerFast", traces: Path) -> Callable[[int], Batch]:
        p, rows = self.training, self.solved(traces)
        data = packing.batches(tokenizer, rows, self.context, p.part_size, p.seed)
        if self.on_policy == 0:
            return data
        prompts = [chat.prompt_ids(tokenizer, row["prompt"]) for row in rows]
        short = [ids for ids in prompts if len(ids) + self.max_new_tokens <= self.context]
        if not short:
            room = f"{self.max_new_tokens} tokens for a reply in a context of {self.context} tokens"
            raise UserError(f"no prompt leaves {room}")
        return partial(self.batch, data, short, tokenizer)

    def batch(
        self,
        data: Callable[[int], Batch],
        prompts: list[list[int]],
        tokenizer: "PreTrainedTokenizerFast",
        index: int,
    ) -> Batch:
        """The data's rows, or prompts and the seed of their replies; a function of the index, so that runs resume."""
        if index < self.warm_up * self.training.steps * self.training.parts:
            return data(index) | {"forward": torch.tensor(True)}
        random = np.random.default_rng((self.training.seed, index))
        if random.random() >= self.on_policy:
            return data(index)
        chosen = [prompts[i] for i in random.integers(len(prompts), size=self.training.part_size)]
        padded = rollouts.padded(chosen, chat.filler(tokenizer))
        numbers = {"seed": int(random.integers(2**62)), "stops": chat.stops(tokenizer), "pad": chat.filler(tokenizer)}
        return {name: torch.tensor(value) for name, value in numbers.items()} | {"ids": padded.ids, "mask": padded.mask}

    def loss(self, student: "PreTrainedModel", teacher: Teacher, batch: Batch) -> Tensor:
        if "seed" in batch:
            batch["written"] = batch = self.written(student, batch)
        student_NV = packed.logits(student, batch)[0]
        with torch.no_grad():
            teacher_NV = packed.logits(teacher.model, batch)[0]
        return divergence(student_NV, teacher_NV, 0.0 if "forward" in batch else self.beta, self.top_k)

    def terms(self, batch: Batch) -> Tensor:
        return packing.learnt(batch.get("written", batch))

    def written(self, student: "PreTrainedModel", batch: Batch) -> packing.Batch:
        """The student's replies to the prompts, as rows that are learnt from up to and with the stop token."""
        stops, pad, prompts = batch["stops"], int(batch["pad"]), rollouts.Prompts(batch["ids"], batch["mask"])
        with torch.random.fork_rng():
            torch.manual_seed(int(batch["seed"]))
            replies_BR = rollouts.replies(student, prompts, self.max_new_tokens, self.temperature, pad, stops.tolist())
        stops_BR = torch.isin(replies_BR, stops)
        rows = rollouts.rows(prompts, replies_BR, rollouts.said(stops_BR))
        stopped_B = stops_BR.any(1)
        if not self.cut_off and stopped_B.any():  # where none ends, all are better than nothing
            rows["labels"][~stopped_B] = packing.IGNORE
        return rows


def divergence(student_NV: Tensor, teacher_NV: Tensor, beta: float, top_k: int | None = None) -> Tensor:
    """Generalised Jensen-Shannon divergence, mean over tokens, nats; its limits at beta 0 and 1 are zero, so there the
    plain KL stands, as in the paper. With `top_k` of the distributions among the teacher's k likeliest tokens."""
    both = losses.common(student_NV, teacher_NV)
    if top_k:
        likeliest_NK = both[1].topk(min(top_k, both[1].shape[-1])).indices
        both = tuple(logits_NV.gather(-1, likeliest_NK) for logits_NV in both)
    q_NV, p_NV = (logits.float().log_softmax(-1) for logits in both)
    if beta in (0, 1):
        return kl(p_NV, q_NV) if beta == 0 else kl(q_NV, p_NV)
    share = torch.tensor(beta)
    m_NV = torch.logaddexp(p_NV + share.log(), q_NV + (-share).log1p())
    return beta * kl(p_NV, m_NV) + (1 - beta) * kl(q_NV, m_NV)


def kl(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    return F.kl_div(q_NV, p_NV, log_target=True, reduction="batchmean")
