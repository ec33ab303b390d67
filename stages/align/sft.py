"""Supervised fine-tuning: next-token loss on replies only. Ouyang et al. 2022, arXiv:2203.02155, section 3.5.

Of replies that were liked or not it learns those that were.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from stages.align import Alignment, Given, Reference
from stages.lib.nets import packed
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SFT(Alignment):
    method: Literal["sft"]

    def batches(self, given: Given) -> Callable[[int], packing.Batch]:
        p, liked = self.training, [row for row in given.examples if row.get("liked", True)]
        more = [{key: value for key, value in row.items() if key != "liked"} for row in liked]
        rows = given.problems if self.examples == self.problems else given.problems + more
        return packing.batches(given.tokenizer, rows, self.context, p.part_size, p.seed)

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return packed.loss(policy, batch), {}

    def terms(self, batch: packing.Batch) -> Tensor:
        return packing.learnt(batch)
