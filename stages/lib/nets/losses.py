"""Losses shared by several techniques. B sequences, T positions, V tokens of vocabulary.

What is measured of whole rows goes row by row, since large vocabularies fill a memory.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.lib.text.packing import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS = 256  # at a time: of 262,144 tokens of vocabulary each thing computed takes 0.27 GB
Logits = Callable[[Tensor], Tensor]  # ids (B, T) -> (B, T, V), on any device


def common(one_NV: Tensor, other_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of two models of one tokenizer, cut to the rows that both have: more than tokens are only padding."""
    rows = min(one_NV.shape[-1], other_NV.shape[-1])
    return one_NV[..., :rows], other_NV[..., :rows]


def next_token(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Mean cross entropy of each token given those before it, nats/token; positions labelled -100 do not count."""
    return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten(), ignore_index=IGNORE)


@torch.no_grad()
def evaluate(model: "PreTrainedModel", rows_NT: Tensor) -> float:
    """Mean next-token loss over rows, nats/token."""
    model.eval()
    one_by_one = rows_NT.to(model.device).split(1)
    return sum(next_token(model(input_ids=ids_1T).logits, ids_1T).item() for ids_1T in one_by_one) / len(rows_NT)


@torch.inference_mode()
def acceptance(teacher: "PreTrainedModel", student: "PreTrainedModel", rows_NT: Tensor) -> float:
    """Mean of sum_v min(p_v, q_v): how often speculative decoding with the student as draft would accept a token.

    Leviathan et al. 2022, arXiv:2211.17192, corollary 3.6; teacher-forced, so no text is drawn.
    """
    total = 0.0
    for ids_1T in rows_NT.to(student.device).split(1):
        both = common(*(model(ids_1T, use_cache=False).logits for model in (teacher, student)))
        p_1TV, q_1TV = (logits_1TV.float().softmax(-1) for logits_1TV in both)
        total += torch.minimum(p_1TV, q_1TV).sum(-1).mean().item()
    return total / len(rows_NT)


@torch.inference_mode()
def compare(before: Logits, after: Logits, rows_NT: Tensor) -> dict[str, float]:
    """Means over rows: KL(before || after), share of equal first choices, both next-token losses; nats/token."""
    sums = torch.zeros(4, dtype=torch.float64)
    for ids_1T in rows_NT.split(1):
        pieces = (logits_1TV[0].split(POSITIONS) for logits_1TV in (before(ids_1T), after(ids_1T)))
        next_T = F.pad(ids_1T[0, 1:], (0, 1), value=IGNORE)
        for p_PV, q_PV, next_P in zip(*pieces, next_T.split(POSITIONS), strict=True):
            p_PV, q_PV = (each_PV.float().log_softmax(-1) for each_PV in (p_PV, q_PV))
            kl, same = (p_PV.exp() * (p_PV - q_PV)).sum(), (p_PV.argmax(-1) == q_PV.argmax(-1)).sum()
            next_P = next_P.to(p_PV.device)
            both = (F.nll_loss(each_PV, next_P, ignore_index=IGNORE, reduction="sum") for each_PV in (p_PV, q_PV))
            sums += torch.stack([kl, same, *both]).cpu()
    rows, positions = rows_NT.shape
    means = sums / (rows * torch.tensor([positions, positions, positions - 1, positions - 1]))
    return dict(zip(("kl", "same_top", "loss_before", "loss_after"), means.tolist(), strict=True))
