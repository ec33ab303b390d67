"""Tokens from a model in transformers, all rows of a batch at once: what its logits say, and nothing else.

Many models bring a generation_config.json with a repetition penalty, top-p or top-k. Another runtime knows none of
these, so a comparison would be one of decoders. Shapes: B rows, P tokens of the longest prompt, R of the longest reply.
"""

from collections.abc import Collection
from itertools import takewhile
from typing import TYPE_CHECKING, Any

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
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stops) or [-1],  # a token that never comes: none would mean the model's own
        pad_token_id=pad,
        **(sampling if temperature else {"do_sample": False}),
    )
    own, model.generation_config = model.generation_config, GenerationConfig()  # it fills in what is left open
    try:
        ids_BT = model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids_BP.to(model.device), attention_mask=mask_BP.to(model.device), generation_config=settings
        )
    finally:
        model.generation_config = own
    return ids_BT[:, ids_BP.shape[1] :]


def until(ids: list[int], stops: Collection[int]) -> list[int]:
    """The tokens before the first stop."""
    return list(takewhile(lambda token: token not in stops, ids))
