"""What a reward model thinks of replies: the logit of the token that ended a reply, read once more behind it.

No head of its own, so a reward model is a model like any other: it can be adapted, pruned, quantized and opened by
every runtime. Only differences between replies to one prompt mean anything. Shapes: B rows, T positions, V vocabulary.
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
    labels_BT = batch["labels"]
    rows_B = torch.arange(len(labels_BT), device=labels_BT.device)
    places_T = torch.arange(labels_BT.shape[1], device=labels_BT.device)
    last_B = (places_T * (labels_BT != IGNORE)).amax(1)
    end_B = batch["ids"][rows_B, last_B]
    behind_BT = torch.full_like(F.pad(labels_BT, (0, 1)), IGNORE)
    behind_BT[rows_B, last_B + 1] = end_B
    logits_BV, _ = packed.logits(model, {"ids": F.pad(batch["ids"], (0, 1)), "labels": behind_BT})
    return logits_BV.float().gather(1, end_B[:, None])[:, 0]
