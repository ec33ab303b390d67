"""Tokens from a model in transformers, all rows of a batch at once: what its logits say, and nothing else.

Many models bring a generation_config.json with a repetition penalty, top-p or top-k. Another runtime knows none of
these, so a comparison would be one of decoders. Rows with the same prompt read it once, and a row that has ended is put
aside, as far as the model's memory of a row can be copied and left out. Shapes: B rows, U different ones, P tokens of
the longest prompt, R of the longest reply, V vocabulary.
"""

import inspect
from collections.abc import Collection
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.lib.nets import anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK = 8  # tokens between two looks at which rows have ended


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
    return write(model, ids_BP, mask_BP, max_new_tokens, stops, temperature, pad, False)[0]


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
    return write(model, ids_BP, mask_BP, max_new_tokens, stops, temperature, pad, True)


def write(
    model: "PreTrainedModel",
    ids_BP: Tensor,
    mask_BP: Tensor,
    max_new_tokens: int,
    stops: Collection[int],
    temperature: float,
    pad: int,
    weighed: bool,
) -> tuple[Tensor, Tensor]:
    """Tokens and, if `weighed`, their log-probabilities, else none."""
    ids_BT, mask_BT = ids_BP.to(model.device), mask_BP.to(model.device)
    stop_S = torch.tensor(sorted(stops), device=model.device)
    rows_B = torch.arange(len(ids_BT), device=model.device)  # which are still written
    cache, size = None, max_new_tokens
    if not anatomy.recurrent(model):
        cache, size = read(model, ids_BT, mask_BT), CHUNK
    ids_BR = ids_BT.new_full((len(ids_BT), max_new_tokens), pad)
    log_p_BR = torch.zeros(ids_BR.shape, device=model.device)
    for first in range(0, max_new_tokens, size):
        count = min(size, max_new_tokens - first)
        written = generate(model, ids_BT, mask_BT, cache, count, stops, temperature, pad, weighed)
        new_BR = written.sequences[:, ids_BT.shape[1] :]
        last = first + new_BR.shape[1]
        ids_BR[rows_B, first:last] = new_BR
        if weighed:
            for place, logits_BV in enumerate(written.logits):
                log_p_BV = (logits_BV.float() / temperature).log_softmax(-1)
                log_p_BR[rows_B, first + place] = log_p_BV.gather(1, new_BR[:, place, None])[:, 0]
        open_B = ~torch.isin(new_BR, stop_S).any(1)
        if not open_B.any() or last == max_new_tokens:
            return ids_BR[:, :last], log_p_BR[:, :last]
        rows_B, ids_BT = rows_B[open_B], written.sequences[open_B]
        mask_BT = F.pad(mask_BT[open_B], (0, new_BR.shape[1]), value=1)
        cache = written.past_key_values
        cache.batch_select_indices(open_B.nonzero()[:, 0])
    raise AssertionError("max_new_tokens is positive")


def read(model: Any, ids_BP: Tensor, mask_BP: Tensor) -> Any:
    """The model's memory of all prompts but for their last tokens, different ones read once; None of single tokens."""
    from transformers import DynamicCache

    if ids_BP.shape[1] == 1:
        return None
    both, row_B = torch.stack([ids_BP, mask_BP], 1).unique(dim=0, return_inverse=True)
    ids_UP, mask_UP = (part[:, :-1] for part in both.unbind(1))
    cache = DynamicCache(config=model.config)
    given: dict[str, Any] = {"past_key_values": cache, "attention_mask": mask_UP, "use_cache": True}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = (mask_UP.cumsum(-1) - 1).clamp(min=0)
    if model._supports_logits_to_keep():
        given["logits_to_keep"] = 1
    model(**model.prepare_inputs_for_generation(ids_UP, **given))
    cache.batch_select_indices(row_B)
    return cache


def generate(
    model: "PreTrainedModel",
    ids_BT: Tensor,
    mask_BT: Tensor,
    cache: Any,
    count: int,
    stops: Collection[int],
    temperature: float,
    pad: int,
    weighed: bool,
) -> Any:
    """By transformers, at most `count` tokens, in the global generator's order."""
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=count,
        eos_token_id=list(stops) or [-1],  # a token that never comes: none would mean the model's own
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=weighed,
        **(sampling if temperature else {"do_sample": False}),
    )
    own, model.generation_config = model.generation_config, GenerationConfig()  # it fills in what is left open
    known = {"past_key_values": cache} if cache else {}
    try:
        return model.generate(  # pyright: ignore[reportCallIssue]
            input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings, **known
        )
    finally:
        model.generation_config = own


def until(ids: list[int], stops: Collection[int]) -> list[int]:
    """The tokens before the first stop."""
    return list(takewhile(lambda token: token not in stops, ids))
