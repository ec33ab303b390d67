"""How likely a teacher holds each label of a text: what a student can learn from texts that nobody has labelled.

Of the first token of the answer, among those that the labels begin with; the `solution` of a record is the likeliest
label, as in self-training (Lee 2013, pseudo-label), `probabilities` are the soft targets of Hinton et al. 2015,
arXiv:1503.02531, section 2. The labels that the records may already have are not looked at.

With `pieces` the teacher is also asked about parts of every text, from which a student learns what words and phrases do
by themselves (n-gram sampling: Tang et al. 2019, arXiv:1903.12136, section 3.2). Cost: one forward pass.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

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
    pieces: NonNegativeInt = 0  # of each text, each a run of its words of any length and place
    seed: NonNegativeInt = 0  # of the pieces

    @model_validator(mode="after")
    def drawn(self) -> "Labels":
        if not self.pieces:
            self.refuse_idle("seed", "with pieces above 0")
        return self

    @torch.inference_mode()
    def record(self, teacher: "tuple[PreTrainedModel, PreTrainedTokenizerFast]", source: Path) -> Iterator[Record]:
        model, tokenizer = teacher
        rows = records.load(source / "records", "train")
        task = labels.require(rows, source, "; `method: classify` makes such")
        rows = [part for row in rows for part in (row, *pieces(row, task, self.pieces, self.seed))]
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


def pieces(row: Record, task: labels.Task, count: int, seed: int) -> Iterator[Record]:
    """Records of at most `count` different parts of a record's text; of a single word there is none."""
    words = task.text(row["prompt"]).split()
    dice = random.Random(f"{seed}\0{row['prompt']}")
    lengths = [dice.randrange(1, len(words)) for _ in range(count if len(words) > 1 else 0)]
    found = {(first := dice.randrange(len(words) - length + 1), first + length) for length in lengths}
    for number, (first, end) in enumerate(sorted(found)):
        part = task.prompt(" ".join(words[first:end]))
        yield row | {"id": f"{row['id']}/{number}", "prompt": part}
