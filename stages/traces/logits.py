"""The teacher's k likeliest next tokens at every position of the training rows. Hinton et al. 2015, arXiv:1503.02531.

Log-probabilities are taken over the whole vocabulary at the temperature that students will be trained with, so what
lies outside the k is known too: 1 - sum exp(logprob). Cost: one forward pass over the rows; on disk 118 bytes a token
for k = 64 of 49,152 (stages/lib/store/topk.py). R rows, T positions, V vocabulary.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import tokens, traces
from stages.traces import Distributions

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Logits(Distributions):
    method: Literal["logits"]
    rows: PositiveInt  # of the token artefact's training rows, from the first
    k: int = Field(16, ge=2)
    temperature: PositiveFloat = 2.0
    batch_size: PositiveInt = 32  # rows of a shard

    def made_of(self, model: Path | None, source: Path) -> dict[str, str]:
        assert model
        tokens.require_tokenizer(source / "tokens", model)
        tokenizer = tokens.about(source / "tokens")["tokenizer"]
        rows = {"tokenizer": tokenizer, "tokens": files.digest(source / "tokens")}
        return super().made_of(model, source) | rows

    @torch.no_grad()
    def record(self, teacher: "PreTrainedModel", source: Path) -> Iterator[traces.Shard]:
        rows = tokens.load(source / "tokens", "train")
        vocab = tokens.about(source / "tokens")["vocab_size"]  # the teacher may have more rows, which are padding
        if self.k >= vocab:
            raise UserError(f"params.yaml: k is {self.k}, but the teacher's vocabulary has only {vocab} tokens")
        for first in range(0, min(self.rows, len(rows)), self.batch_size):
            ids_RT = torch.from_numpy(rows[first : min(first + self.batch_size, self.rows)].astype("int64"))
            logits_RTV = teacher(input_ids=ids_RT.to(teacher.device), use_cache=False).logits[..., :vocab]
            logprob_RTK, index_RTK = (logits_RTV.float() / self.temperature).log_softmax(-1).topk(self.k)
            yield traces.Shard(ids_RT, index_RTK.cpu(), logprob_RTK.cpu(), vocab)

    def measure(self, teacher: "PreTrainedModel", folder: Path) -> dict[str, float]:
        return traces.fidelity(folder, teacher, self.temperature)
