"""Odds ratio preference optimisation: supervised fine-tuning on chosen replies that also widens the odds between them
and the rejected ones, without a reference. Hong et al. 2024, arXiv:2403.07691, eq. 4 to 7.

    -log p(c) - weight log s(log odds(c) - log odds(w)),    odds(y) = p(y) / (1 - p(y)),    p(y) = pi(y | x)^(1 / |y|)

c is the chosen reply, w the rejected one, s the logistic function. A base model may begin with it, no sft before. Cost:
one pass forward and backward over both replies. Shapes: B pairs.
"""

from typing import TYPE_CHECKING, Literal

import torch.nn.functional as F
from pydantic import PositiveFloat
from torch import Tensor

from stages.align import Reference
from stages.align.parts import pairs
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ORPO(pairs.OfPairs):
    method: Literal["orpo"]
    weight: PositiveFloat = 0.1  # of the odds beside the chosen replies' own loss

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chosen_B, rejected_B = pairs.log_probabilities(policy, batch)
        length_chosen_B, length_rejected_B = pairs.lengths(batch)
        own_B, other_B = chosen_B / length_chosen_B, rejected_B / length_rejected_B
        margin_B = log_odds(own_B) - log_odds(other_B)
        loss = -own_B.mean() - self.weight * F.logsigmoid(margin_B).mean()
        return loss, pairs.measures(margin_B, chosen_B, rejected_B)


def log_odds(log_p: Tensor) -> Tensor:
    """log p / (1 - p) of log p, also where p is nearly 1 or so small that 1 - p is 1."""
    return log_p - (-log_p.expm1()).clamp(min=1e-12).log()
