"""Losses shared by several techniques. B sequences, T positions, V tokens of vocabulary."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORE = -100  # label of a position that is not learnt from; the default of torch's cross entropy


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
