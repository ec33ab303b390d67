"""The teacher's own solutions: rejection sampling. Yuan et al. 2023, arXiv:2308.01825, section 3.3.

Or by majority, or unverified: see stages/traces/parts/answers.py. Cost: `count` x `attempts` replies at most.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from stages.lib.frame.params import Model
from stages.lib.nets import decoding
from stages.lib.sampling import rollouts
from stages.lib.store import models
from stages.lib.text import chat
from stages.traces.parts.answers import Answers, Writer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Solutions(Answers):
    method: Literal["solutions"]
    model: Model

    def open(self, model: Path | None, place: Path) -> "TransformersWriter":
        assert model, "the stage gives one to every technique with the parameter `model`"
        return TransformersWriter(models.load(model), models.load_tokenizer(model), self)


class TransformersWriter(Writer):
    """Draws one reply after the other from one generator, seeded when it is opened."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", p: Solutions):
        self.model, self.tokenizer, self.p = model, tokenizer, p
        torch.manual_seed(p.seed)

    def reply(self, batch: int, prompts: list[str], attempt: int) -> list[str]:
        p, pad, stops = self.p, chat.filler(self.tokenizer), chat.stops(self.tokenizer)
        padded = rollouts.padded([chat.prompt_ids(self.tokenizer, prompt) for prompt in prompts], pad)
        replies_BR = rollouts.replies(self.model, padded, p.max_new_tokens, p.temperature, pad, stops)
        said = [decoding.until(row, stops) for row in replies_BR.tolist()]
        return self.tokenizer.batch_decode(said, skip_special_tokens=True)
