"""The teacher's k likeliest next tokens at every position of the training rows. Hinton et al. 2015, arXiv:1503.02531.

Log-probabilities are taken over the whole vocabulary at the temperature that students will be trained with, so what
lies outside the k is known too: 1 - sum exp(logprob). Cost: one forward pass over the rows; on disk 118 bytes a token
for k = 64 of 49,152 (stages/lib/store/topk.py). R rows, T positions, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from stages.lib.frame.errors import UserError
from stages.traces import Recording


class Params(Recording):
    method: Literal["logits"]
    rows: PositiveInt  # of the token artefact's training rows, from the first
    k: int = Field(16, ge=2)
    temperature: PositiveFloat = 2.0
    batch_size: PositiveInt = 32


@torch.no_grad()
def record(teacher: Any, _tokenizer: Any, _problems: Any, rows: Any, p: Params) -> Iterator[dict[str, Any]]:
    if p.k >= (vocab := teacher.config.vocab_size):
        raise UserError(f"params.yaml: k is {p.k}, but the teacher's vocabulary has only {vocab} tokens")
    for first in range(0, min(p.rows, len(rows)), p.batch_size):
        ids_RT = torch.from_numpy(rows[first : min(first + p.batch_size, p.rows)].astype("int64"))
        logits_RTV = teacher(input_ids=ids_RT.to(teacher.device), use_cache=False).logits
        logprob_RTK, index_RTK = (logits_RTV.float() / p.temperature).log_softmax(-1).topk(p.k)
        yield {"ids": ids_RT, "index": index_RTK.cpu(), "logprob": logprob_RTK.cpu(), "vocab": vocab}
