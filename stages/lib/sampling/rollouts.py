"""Replies drawn from a model in transformers, all prompts of a batch at once.

Shapes: B prompts, P tokens of the longest prompt, R tokens of the longest reply, T of both.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from stages.lib.nets import decoding
from stages.lib.sampling.rewards import Reply
from stages.lib.store.records import Record
from stages.lib.text import chat, packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


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


class Drawn(NamedTuple):
    """Replies with the probabilities that they were drawn with."""

    ids: Tensor  # (B, R)
    log_p: Tensor  # (B, R), nats
    said: Tensor  # (B, R): whether it is a token of the reply, up to and with the stop
    stopped: Tensor  # (B,)


@torch.no_grad()
def drawn(
    model: "PreTrainedModel",
    prompts: Prompts,
    max_new_tokens: int,
    temperature: float,
    pad: int,
    stops: Collection[int],
    seed: int,
) -> Drawn:
    """What a model writes that is being trained: without dropout, and by a generator of its own."""
    training = model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        ids_BR, log_p_BR = decoding.sample(model, prompts.ids, prompts.mask, max_new_tokens, stops, temperature, pad)
    model.train(training)
    stops_BR = torch.isin(ids_BR, torch.tensor(list(stops), device=ids_BR.device))
    return Drawn(ids_BR, log_p_BR, said(stops_BR), stops_BR.any(1))


class Played(NamedTuple):
    prompts: Prompts
    drawn: Drawn
    replies: list[Reply]


def play(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    asked: list[tuple[Record, list[int]]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Played:
    """A reply to each problem, given with its prompt's tokens, and what a reward goes by."""
    stops, pad, control = chat.stops(tokenizer), chat.filler(tokenizer), set(tokenizer.all_special_ids)
    prompts = Prompts(*(part.to(model.device) for part in padded([ids for _, ids in asked], pad)))
    found = drawn(model, prompts, max_new_tokens, temperature, pad, stops, seed)
    replies = []
    for ids, said, stopped in zip(found.ids, found.said, found.stopped.tolist(), strict=True):
        words = decoding.until(ids[said].tolist(), stops)
        text = str(tokenizer.decode(words, skip_special_tokens=True))
        replies.append(Reply(text, int(said.sum()), stopped, not control.intersection(words)))
    return Played(prompts, found, replies)


def said(stops_BR: Tensor) -> Tensor:
    """(B, R): true up to and with the first stop."""
    return stops_BR.long().cumsum(1) - stops_BR.long() == 0


def rows(prompts: Prompts, replies_BR: Tensor, said_BR: Tensor) -> packing.Batch:
    """Prompt and reply in a row each, the reply to be learnt: ids, labels (B, T)."""
    ids_BT = torch.cat([prompts.ids, replies_BR], dim=1)
    labels_BT = torch.cat([torch.full_like(prompts.ids, packing.IGNORE), replies_BR], dim=1)
    text_BT = torch.cat([prompts.mask.bool(), said_BR], dim=1)
    every = zip(ids_BT, labels_BT, text_BT, strict=True)
    return packing.padded([(ids_T[text_T], labels_T[text_T]) for ids_T, labels_T, text_T in every])
