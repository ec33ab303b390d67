"""On-policy: the student learns from the teacher's word on what the student itself writes. Agarwal et al. 2023 (GKD),
arXiv:2306.13649, algorithm 1 and eq. 1.

    L = beta KL(p || m) + (1 - beta) KL(q || m)      m = beta p + (1 - beta) q      p teacher, q student

over the tokens of a reply: with probability `on_policy` one that the student samples for the prompt, else the data's.
beta 0 is KL(p || q); beta 1 is KL(q || p), with `on_policy` 1 what MiniLLM minimises (Gu et al. 2023,
arXiv:2306.08543), but no gradient goes through the sampling. Cost: `max_new_tokens` forward passes of the student
before a step on its own samples. Shapes: B prompts, T tokens, N reply tokens, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from stages.distill import Distillation, solved
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.text import packing, problems


class Params(Distillation):
    method: Literal["on_policy"]
    on_policy: float = Field(0.5, ge=0, le=1)  # lambda: share of the batches that the student writes
    beta: float = Field(0.5, ge=0, le=1)
    temperature: PositiveFloat = 1.0  # of the student's samples
    max_new_tokens: PositiveInt = 64
    context: int = Field(256, ge=16)


def batches(tokenizer: Any, folder: Path, p: Params) -> Callable[[int], dict[str, Tensor]]:
    size, rows = p.training.batch_size // p.training.accumulation, solved(folder, p)
    data = packing.batches(tokenizer, rows, p.context, size, p.training.seed)
    prompts = [problems.prompt_ids(tokenizer, row["prompt"]) for row in rows]
    short = [ids for ids in prompts if len(ids) + p.max_new_tokens <= p.context]
    if not short:
        raise UserError(f"no prompt leaves {p.max_new_tokens} tokens for a reply in a context of {p.context} tokens")
    return partial(_batch, data, short, tokenizer, size, p)


def _batch(data: Any, prompts: list[list[int]], tokenizer: Any, size: int, p: Params, index: int) -> dict[str, Tensor]:
    """The data's rows, or prompts and the seed of their replies: of the step alone, so that a run can be resumed."""
    random = np.random.default_rng((p.training.seed, index))
    if random.random() >= p.on_policy:
        return data(index)
    chosen = [prompts[i] for i in random.integers(len(prompts), size=size)]
    batch = tokenizer.pad({"input_ids": chosen}, padding_side="left", return_tensors="pt")
    numbers = {"seed": random.integers(2**62), "stop": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    tensors = {name: torch.tensor(int(value)) for name, value in numbers.items()}
    return tensors | {"ids": batch["input_ids"], "mask": batch["attention_mask"]}


def loss(student: Any, teacher: Any, batch: dict[str, Tensor], p: Params) -> Tensor:
    if "seed" in batch:
        batch = written(student, batch, p)
    student_NV = packed.logits(student, batch)[0]
    with torch.no_grad():
        teacher_NV = packed.logits(teacher, batch)[0]
    return divergence(student_NV, teacher_NV, p.beta)


@torch.no_grad()
def written(student: Any, batch: dict[str, Tensor], p: Params) -> packing.Batch:
    """The student's replies to the prompts, as rows that are learnt from up to and with the stop token."""
    with torch.random.fork_rng():
        torch.manual_seed(int(batch["seed"]))
        ids_BT = student.generate(
            input_ids=batch["ids"],
            attention_mask=batch["mask"],
            max_new_tokens=p.max_new_tokens,
            eos_token_id=int(batch["stop"]),
            pad_token_id=int(batch["pad"]),
            do_sample=True,
            temperature=p.temperature,
            top_k=0,
            top_p=1.0,
        )
    asked = batch["ids"].shape[1]
    stops_BT = (ids_BT[:, asked:] == batch["stop"]).long()
    said_BT = stops_BT.cumsum(1) - stops_BT == 0  # no stop before
    real_BT = torch.cat([batch["mask"].bool(), said_BT], dim=1)
    labels_BT = torch.cat([torch.full_like(batch["ids"], packing.IGNORE), ids_BT[:, asked:]], dim=1)
    rows = [(ids[real], labels[real]) for ids, labels, real in zip(ids_BT, labels_BT, real_BT, strict=True)]
    return packing.padded(rows)


def divergence(student_NV: Tensor, teacher_NV: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence, mean over tokens, nats; its limits at beta 0 and 1 are zero, so there the
    plain KL stands, as in the paper."""
    q_NV, p_NV = (logits.float().log_softmax(-1) for logits in (student_NV, teacher_NV))
    if beta in (0, 1):
        return kl(p_NV, q_NV) if beta == 0 else kl(q_NV, p_NV)
    share = torch.tensor(beta)
    m_NV = torch.logaddexp(p_NV + share.log(), q_NV + (-share).log1p())
    return beta * kl(p_NV, m_NV) + (1 - beta) * kl(q_NV, m_NV)


def kl(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    return F.kl_div(q_NV, p_NV, log_target=True, reduction="batchmean")
