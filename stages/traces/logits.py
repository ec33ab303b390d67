"""The teacher's k likeliest next tokens at every position of the training rows. Hinton et al. 2015, arXiv:1503.02531.

Log-probabilities are taken over the whole vocabulary at the temperature that students will be trained with, so what
lies outside the k is known too: 1 - sum exp(logprob). Cost: one forward pass over the rows. R rows, T positions.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from stages.traces import Recording


class Params(Recording):
    method: Literal["logits"]
    rows: PositiveInt  # of the token artefact's training rows, from the first
    k: PositiveInt = 16
    temperature: PositiveFloat = 2.0
    batch_size: PositiveInt = 32


@torch.no_grad()
def record(teacher: Any, _tokenizer: Any, _problems: Any, rows: Any, p: Params) -> Iterator[dict[str, Tensor]]:
    small = torch.uint16 if teacher.config.vocab_size <= 2**16 else torch.int32
    for first in range(0, min(p.rows, len(rows)), p.batch_size):
        ids_RT = torch.from_numpy(rows[first : min(first + p.batch_size, p.rows)].astype("int64"))
        logits_RTV = teacher(input_ids=ids_RT.to(teacher.device), use_cache=False).logits
        logprob_RTK, index_RTK = (logits_RTV.float() / p.temperature).log_softmax(-1).topk(p.k)
        yield {
            "ids": ids_RT.to(small),
            "index": index_RTK.cpu().to(small),
            "logprob": logprob_RTK.cpu().half(),
        }
