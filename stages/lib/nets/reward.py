"""What a reward model thinks of replies: the logit of the token that ended a reply, read once more where one asks.

Behind the whole reply it is the score of the reply, behind the end of a step that of the step. No head of its own, so a
reward model is a model like any other: it can be adapted, pruned, quantized and opened by every runtime. Of whole
replies only differences between those to one prompt mean anything. Shapes: B rows, T positions, S places, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.lib.nets import packed
from stages.lib.text.packing import IGNORE, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def scores(model: "PreTrainedModel", batch: Batch) -> Tensor:
    """Of every row, a prompt and its reply to the end, (B,)."""
    last_B = last(batch)
    places_T = torch.arange(batch["ids"].shape[1], device=last_B.device)
    return at(model, batch, places_T == last_B[:, None])


def at(model: "PreTrainedModel", batch: Batch, asked_BT: Tensor) -> Tensor:
    """Behind each token that is asked about, row by row, (S,)."""
    ids_BT = batch["ids"]
    end_B = ids_BT.gather(1, last(batch)[:, None])
    behind_BT = F.pad(torch.where(asked_BT, end_B, IGNORE), (1, 0), value=IGNORE)
    logits_SV, end_S = packed.logits(model, {"ids": F.pad(ids_BT, (0, 1)), "labels": behind_BT})
    return logits_SV.float().gather(1, end_S[:, None])[:, 0]


def last(batch: Batch) -> Tensor:
    """The place of every row's last learnt token, (B,)."""
    places_T = torch.arange(batch["ids"].shape[1], device=batch["ids"].device)
    return (places_T * (batch["labels"] != IGNORE)).amax(1)
