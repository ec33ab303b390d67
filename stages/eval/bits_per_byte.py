"""Bits a byte: how well the model predicts held-out text, whatever its tokenizer. Gao et al. 2020, arXiv:2101.00027.

    bits/byte = -sum_t log2 p(x_t | x_<t) / bytes      bytes = length of the same text in UTF-8

A text is cut into windows of the context; each starts at BOS, so the first tokens of a window see little of the text.
A uniform model gives log2(V) * tokens / bytes. Cost: one forward pass over the text. T = tokens, V = vocabulary.
"""

from collections.abc import Iterator
from math import log
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from stages.eval.parts import held_out
from stages.lib.frame import params
from stages.lib.runtimes.base import Runtime

REPEATABLE = True


class Params(params.Params):
    documents: PositiveInt = 48  # spread over the held-out split
    characters: PositiveInt = 1200  # of each document
    context: int = Field(256, ge=2)  # tokens a window, BOS among them


def score(runtime: Runtime, data: held_out.HeldOut, p: Params) -> dict[str, float]:
    texts = [row["text"][: p.characters] for row in held_out.spread(data.documents, p.documents)]
    windows = [window for text in texts for window in cut(runtime.tokenizer, text, p.context)]
    nats = sum(negative_log_likelihood(runtime.logits(window)[:-1], window[1:]) for window in windows)
    return {"bits_per_byte": nats / log(2) / sum(len(text.encode()) for text in texts)}


def cut(tokenizer: Any, text: str, context: int) -> Iterator[list[int]]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    for first in range(0, len(ids), context - 1):
        yield [held_out.start(tokenizer), *ids[first : first + context - 1]]


def negative_log_likelihood(logits_TV: np.ndarray, ids_T: list[int]) -> float:
    """Nats, summed: log sum exp of the row minus the logit of the token that came."""
    logits_TV = logits_TV.astype(np.float64)
    top_T = logits_TV.max(axis=1)
    normaliser_T = top_T + np.log(np.exp(logits_TV - top_T[:, None]).sum(axis=1))
    return float((normaliser_T - logits_TV[np.arange(len(ids_T)), ids_T]).sum())
