"""Replies drawn from a model in transformers, all prompts of a batch at once.

Shapes: B prompts, P tokens of the longest prompt, R tokens of the longest reply.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Prompts(NamedTuple):
    """Filled up on the left, so that all replies begin at the same position."""

    ids: Tensor  # (B, P)
    mask: Tensor  # (B, P): 1 where a prompt is


def padded(tokenizer: "PreTrainedTokenizerFast", prompts: list[list[int]]) -> Prompts:
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    return Prompts(batch["input_ids"], batch["attention_mask"])


@torch.no_grad()
def replies(
    model: "PreTrainedModel",
    prompts: Prompts,
    max_new_tokens: int,
    temperature: float,
    pad: int,
    stop: int | None = None,
) -> Tensor:
    """What the model writes after each prompt, (B, R), `pad` behind the stop token; likeliest tokens at temperature 0.

    Drawn from the global generator. Without `stop` the model's own stop tokens count.
    """
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    stopping = {} if stop is None else {"eos_token_id": stop}
    ids_BT = model.generate(  # pyright: ignore[reportCallIssue]
        input_ids=prompts.ids.to(model.device),
        attention_mask=prompts.mask.to(model.device),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        **stopping,
        **sampling,
    )
    return ids_BT[:, prompts.ids.shape[1] :]
