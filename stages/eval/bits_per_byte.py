"""Bits a byte: how well the model predicts held-out text, whatever its tokenizer. Gao et al. 2020, arXiv:2101.00027.

    bits/byte = -sum_t log2 p(x_t | x_<t) / bytes      bytes = length of the same text in UTF-8

A text is cut into windows of the context; each starts at BOS, so the first tokens of a window see little of the text.
A uniform model gives log2(V) * tokens / bytes. Samples: how the model continues a few of the texts. Cost: one forward
pass over the text. T = tokens, V = vocabulary.
"""

from collections.abc import Iterator
from math import log
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from stages.eval import OfOne, Scores
from stages.eval.parts import held_out
from stages.lib.runtimes.base import Runtime
from stages.lib.store.records import Record
from stages.lib.text import chat

CONTINUATIONS, OPENING, LENGTH = 3, 24, 48  # texts that are continued, tokens of each that are given, and written


class BitsPerByte(OfOne):
    documents: PositiveInt = 48  # spread over the held-out split
    characters: PositiveInt = 1200  # of each document
    context: int = Field(256, ge=2)  # tokens a window, BOS among them

    def score(self, runtime: Runtime, records: list[Record]) -> Scores:
        documents = held_out.texts(records, "bits_per_byte")
        texts = [text[: self.characters] for text in held_out.spread(documents, self.documents)]
        windows = [window for text in texts for window in cut(runtime.tokenizer, text, self.context)]
        nats = sum(negative_log_likelihood(runtime.logits(window)[:-1], window[1:]) for window in windows)
        bits_per_byte = nats / log(2) / sum(len(text.encode()) for text in texts)
        return Scores({"bits_per_byte": bits_per_byte}, samples={"continuations": continuations(runtime, documents)})


def continuations(runtime: Runtime, documents: list[str]) -> list[dict[str, str]]:
    """[{opening, continuation}] of a few documents: how the model goes on by itself, greedily."""
    tokenizer = runtime.tokenizer
    texts = held_out.spread(documents, CONTINUATIONS)
    openings = [chat.text_ids(tokenizer, text)[:OPENING] for text in texts]
    prompts = [[*chat.start(tokenizer), *ids] for ids in openings]
    continued = runtime.generate(prompts, LENGTH, chat.stops(tokenizer))
    return [
        {"opening": tokenizer.decode(opening), "continuation": tokenizer.decode(ids, skip_special_tokens=True)}
        for opening, ids in zip(openings, continued, strict=True)
    ]


def cut(tokenizer: Any, text: str, context: int) -> Iterator[list[int]]:
    ids, start = chat.text_ids(tokenizer, text), chat.start(tokenizer)
    for first in range(0, len(ids), context - len(start)):
        yield [*start, *ids[first : first + context - len(start)]]


def negative_log_likelihood(logits_TV: np.ndarray, ids_T: list[int]) -> float:
    """Nats, summed: log sum exp of the row minus the logit of the token that came."""
    logits_TV = logits_TV.astype(np.float64)
    top_T = logits_TV.max(axis=1)
    normaliser_T = top_T + np.log(np.exp(logits_TV - top_T[:, None]).sum(axis=1))
    return float((normaliser_T - logits_TV[np.arange(len(ids_T)), ids_T]).sum())
