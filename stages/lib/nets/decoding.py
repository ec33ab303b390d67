"""Tokens from a model in transformers, all rows of a batch at once: what its logits say, and nothing else.

Many models bring a generation_config.json with a repetition penalty, top-p or top-k. Another runtime knows none of
these, so a comparison would be one of decoders. Shapes: B rows, P tokens of the longest prompt, R of the longest reply.
"""

from collections.abc import Collection
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def decode(
    model: "PreTrainedModel",
    ids_BP: Tensor,
    mask_BP: Tensor,
    max_new_tokens: int,
    stops: Collection[int],
    temperature: float,
    pad: int,
) -> Tensor:
    """What follows each prompt, (B, R), `pad` behind the first stop; the likeliest tokens at temperature 0.

    Prompts are filled up on the left, where `mask` is 0. Drawn from the global generator.
    """
    written = generate(model, ids_BP, mask_BP, max_new_tokens, stops, temperature, pad)
    return written.sequences[:, ids_BP.shape[1] :]


def sample(
    model: "PreTrainedModel",
    ids_BP: Tensor,
    mask_BP: Tensor,
    max_new_tokens: int,
    stops: Collection[int],
    temperature: float,
    pad: int,
) -> tuple[Tensor, Tensor]:
    """The same, above temperature 0, and the log-probability with which each token was drawn, nats, (B, R)."""
    written = generate(model, ids_BP, mask_BP, max_new_tokens, stops, temperature, pad, output_logits=True)
    ids_BR = written.sequences[:, ids_BP.shape[1] :]
    steps = [
        (logits_BV.float() / temperature).log_softmax(-1).gather(1, token_B[:, None])
        for logits_BV, token_B in zip(written.logits, ids_BR.unbind(1), strict=True)
    ]
    return ids_BR, torch.cat(steps, dim=1)


def generate(
    model: "PreTrainedModel",
    ids_BP: Tensor,
    mask_BP: Tensor,
    max_new_tokens: int,
    stops: Collection[int],
    temperature: float,
    pad: int,
    **more: bool,
) -> Any:
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or [-1],  # a token that never comes: none would mean the model's own
        pad_token_id=pad,
        return_dict_in_generate=True,
        **more,
        **(sampling if temperature else {"do_sample": False}),
    )
    own, model.generation_config = model.generation_config, GenerationConfig()  # it fills in what is left open
    try:
        return model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids_BP.to(model.device), attention_mask=mask_BP.to(model.device), generation_config=settings
        )
    finally:
        model.generation_config = own


def until(ids: list[int], stops: Collection[int]) -> list[int]:
    """The tokens before the first stop."""
    return list(takewhile(lambda token: token not in stops, ids))
