"""Simple preference optimisation: chosen replies become likelier a token than rejected ones, by a margin, without a
reference. Meng et al. 2024, arXiv:2405.14734, eq. 6.

    -log s(beta (log pi(c | x) / |c| - log pi(w | x) / |w|) - gamma)      c chosen, w rejected, s the logistic function

Nothing holds it near the model as it came but a small learning rate. Cost: one pass forward and backward over both
replies. Shapes: B pairs.
"""

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from stages.align import Reference
from stages.align.parts import pairs
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SimPO(pairs.OfPairs):
    method: Literal["simpo"]
    beta: PositiveFloat = 2.0
    gamma: NonNegativeFloat = 1.0  # by how much the chosen reply must lead

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chosen_B, rejected_B = pairs.log_probabilities(policy, batch)
        length_chosen_B, length_rejected_B = pairs.lengths(batch)
        margin_B = chosen_B / length_chosen_B - rejected_B / length_rejected_B
        loss = -F.logsigmoid(self.beta * margin_B - self.gamma).mean()
        return loss, pairs.measures(margin_B, chosen_B, rejected_B)
