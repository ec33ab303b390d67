"""Simple preference optimisation: chosen replies become likelier a token than rejected ones, by a margin, without a
reference. Meng et al. 2024, arXiv:2405.14734, eq. 6.

    -log s(beta (log pi(c | x) / |c| - log pi(w | x) / |w|) - gamma)      c chosen, w rejected, s the logistic function

Nothing holds it near the model as it came but a small learning rate. Cost: one pass forward and backward over both
replies. Shapes: B pairs.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from stages.align import Alignment, Reference
from stages.align.parts import pairs
from stages.lib.store.records import Record
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class SimPO(Alignment):
    method: Literal["simpo"]
    beta: PositiveFloat = 2.0
    gamma: NonNegativeFloat = 1.0  # by how much the chosen reply must lead

    def batches(
        self, tokenizer: "PreTrainedTokenizerFast", problems: list[Record], examples: list[Record]
    ) -> Callable[[int], packing.Batch]:
        return pairs.batches(tokenizer, examples, self.context, self.training.part_size, self.training.seed)

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chosen_B, rejected_B = pairs.log_probabilities(policy, batch)
        length_chosen_B, length_rejected_B = pairs.lengths(batch)
        margin_B = chosen_B / length_chosen_B - rejected_B / length_rejected_B
        loss = -F.logsigmoid(self.beta * margin_B - self.gamma).mean()
        return loss, pairs.measures(margin_B, chosen_B, rejected_B)
