"""How likely a teacher holds each label of a text: what a student can learn from texts that nobody has labelled.

Of the first token of the answer, among those that the labels begin with; the `solution` of a record is the likeliest
label, as in self-training (Lee 2013, pseudo-label), `probabilities` are the soft targets of Hinton et al. 2015,
arXiv:1503.02531, section 2. The labels that the records may already have are not looked at. Cost: one forward pass.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveInt

from stages.lib.nets import packed
from stages.lib.store import records
from stages.lib.store.records import Record
from stages.lib.text import labels, packing
from stages.lib.training import loop
from stages.lib.training.config import Precision
from stages.traces import Readings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Labels(Readings):
    method: Literal["labels"]
    context: int = Field(1024, ge=16)  # tokens of a row of texts
    batch_size: PositiveInt = 1  # rows
    precision: Precision = "auto"

    @torch.inference_mode()
    def record(self, teacher: "tuple[PreTrainedModel, PreTrainedTokenizerFast]", source: Path) -> Iterator[Record]:
        model, tokenizer = teacher
        rows = records.load(source / "records", "train")
        task = labels.require(rows, source, "; `method: classify` makes such")
        token_L = torch.tensor(labels.tokens(tokenizer, task.labels), device=model.device)
        for batch in packing.in_order(tokenizer, packing.numbered(tokenizer, rows), self.context, self.batch_size):
            on_device = {name: part.to(model.device) for name, part in batch.items()}
            with torch.autocast(model.device.type, torch.bfloat16, enabled=loop.mixed(self.precision)):
                logits_NV, numbers_N = packed.logits(model, on_device)
            likely_NL = logits_NV[:, token_L].float().softmax(-1)
            best_N = likely_NL.argmax(-1)
            for number, best, likely_L in zip(*(each.tolist() for each in (numbers_N, best_N, likely_NL)), strict=True):
                said = {"solution": task.labels[best], "probabilities": [round(p, 6) for p in likely_L]}
                yield rows[number] | said
