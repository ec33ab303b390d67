"""Losses shared by several techniques. B sequences, T positions, V tokens of vocabulary."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.lib.text.packing import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Logits = Callable[[Tensor], Tensor]  # ids (B, T) -> (B, T, V), on any device


def common(one_NV: Tensor, other_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of two models of one tokenizer, cut to the rows that both have: more than tokens are only padding."""
    rows = min(one_NV.shape[-1], other_NV.shape[-1])
    return one_NV[..., :rows], other_NV[..., :rows]


def next_token(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Mean cross entropy of each token given those before it, nats/token; positions labelled -100 do not count."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten(), ignore_index=IGNORE)


@torch.no_grad()
def evaluate(model: "PreTrainedModel", rows_NT: Tensor, batch: int = 16) -> float:
    """Mean next-token loss over rows, nats/token."""
    model.eval()
    total = sum(
        next_token(model(input_ids=ids).logits, ids).item() * len(ids)
        for ids in (chunk.to(model.device) for chunk in rows_NT.split(batch))
    )
    return total / len(rows_NT)


@torch.inference_mode()
def acceptance(teacher: "PreTrainedModel", student: "PreTrainedModel", rows_NT: Tensor, batch: int = 16) -> float:
    """Mean of sum_v min(p_v, q_v): how often speculative decoding with the student as draft would accept a token.

    Leviathan et al. 2022, arXiv:2211.17192, corollary 3.6; teacher-forced, so no text is drawn.
    """
    total = 0.0
    for ids_BT in rows_NT.to(student.device).split(batch):
        both = common(*(model(ids_BT, use_cache=False).logits for model in (teacher, student)))
        p_BTV, q_BTV = (logits_BTV.float().softmax(-1) for logits_BTV in both)
        total += torch.minimum(p_BTV, q_BTV).sum(-1).mean(1).sum().item()
    return total / len(rows_NT)


@torch.inference_mode()
def compare(before: Logits, after: Logits, rows_NT: Tensor, batch: int = 16) -> dict[str, float]:
    """Means over rows: KL(before || after), share of equal first choices, both next-token losses; nats/token."""
    sums = torch.zeros(4, dtype=torch.float64)
    for ids_BT in rows_NT.split(batch):
        p_BTV, q_BTV = (logits(ids_BT).float().log_softmax(-1) for logits in (before, after))
        kl_B = (p_BTV.exp() * (p_BTV - q_BTV)).sum(-1).mean(1)
        same_B = (p_BTV.argmax(-1) == q_BTV.argmax(-1)).float().mean(1)
        both = [next_token(each_BTV, ids_BT.to(each_BTV.device)) * len(ids_BT) for each_BTV in (p_BTV, q_BTV)]
        sums += torch.stack([kl_B.sum(), same_B.sum(), *both]).cpu()
    return dict(zip(("kl", "same_top", "loss_before", "loss_after"), (sums / len(rows_NT)).tolist(), strict=True))
