"""Supervised fine-tuning: next-token loss on replies only. Ouyang et al. 2022, arXiv:2203.02155, section 3.5."""

from pathlib import Path
from typing import Any, Literal

from stages.align import Alignment
from stages.lib.nets import packed
from stages.lib.store.records import Record
from stages.lib.text import packing
from stages.lib.training import loop


class Params(Alignment):
    method: Literal["sft"]


def align(
    model: Any,
    tokenizer: Any,
    problems: list[Record],
    examples: list[Record],
    p: Params,
    curve: list[dict[str, float]],
    checkpoints: Path,
) -> dict[str, float]:
    size = p.training.batch_size // p.training.accumulation
    batch = packing.batches(tokenizer, problems + examples, p.context, size, p.training.seed)
    return loop.fit(model, batch, lambda part: packed.loss(model, part), p.training, curve, checkpoints)
