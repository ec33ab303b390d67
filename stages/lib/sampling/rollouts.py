"""Replies drawn from a model in transformers, all prompts of a batch at once.

Shapes: B prompts, P tokens of the longest prompt, R tokens of the longest reply.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from stages.lib.nets import decoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Prompts(NamedTuple):
    """Filled up on the left, so that all replies begin at the same position."""

    ids: Tensor  # (B, P)
    mask: Tensor  # (B, P): 1 where a prompt is


def padded(prompts: list[list[int]], pad: int) -> Prompts:
    width = max(map(len, prompts))
    ids_BP = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts])
    return Prompts(ids_BP, torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]))


@torch.no_grad()
def replies(
    model: "PreTrainedModel",
    prompts: Prompts,
    max_new_tokens: int,
    temperature: float,
    pad: int,
    stops: Collection[int],
) -> Tensor:
    """What the model writes after each prompt, (B, R), `pad` behind the stop token; likeliest tokens at temperature 0.

    Drawn from the global generator.
    """
    return decoding.decode(model, prompts.ids, prompts.mask, max_new_tokens, stops, temperature, pad)
