"""Kahneman-Tversky optimisation: from single replies, each liked or not, without pairs. Ethayarajh et al. 2024,
arXiv:2402.01306, eq. 8.

    liked       desirable   (1 - s(beta (r - z)))      r = log pi(y | x) - log pi_ref(y | x)
    disliked    undesirable (1 - s(beta (z - r)))      z = max(0, mean of r over replies to other prompts), no gradient

s is the logistic function. z tells how far the model has gone from its reference whatever it is asked, so that a reply
counts only for what it is ahead of that. Where liked and disliked replies are not equally many, desirable x liked
should stay within 1 to 4/3 times undesirable x disliked (section 4.2). Preference pairs count as one of each. Cost: two
passes forward and one backward over twice the replies. Shapes: B replies.
"""

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from stages.align import Alignment, Given, Reference
from stages.align.parts import pairs, verdicts
from stages.lib.frame.errors import UserError
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KTO(Alignment):
    method: Literal["kto"]
    beta: PositiveFloat = 0.1  # weight of staying near the reference
    desirable: PositiveFloat = 1.0  # weight of a liked reply
    undesirable: PositiveFloat = 1.0
    liked_share: float = Field(1.0, gt=0, le=1)  # of the liked replies this share is learnt from, drawn by the seed

    @model_validator(mode="after")
    def others_to_compare(self) -> "KTO":
        if self.training.part_size < 2:
            raise ValueError("training: a part of 1 reply has no other prompt to be compared with: 2 or more")
        return self

    def batches(self, given: Given) -> Callable[[int], packing.Batch]:
        """In a seeded order."""
        known = verdicts.encode(given.tokenizer, given.examples, self.context)
        if len(known) < 2:
            said = f"{len(known)} reply fits into a context of {self.context} tokens"
            raise UserError(f"{said}, and kto compares two at least")
        order = np.random.default_rng(self.training.seed).permutation(len(known))
        liked = [i for i in order if known[i].liked]
        left_out = set(liked[ceil(self.liked_share * len(liked)) :])
        rows = [known[i] for i in order if i not in left_out]
        return pairs.rounds(rows, self.training.part_size, verdicts.together)

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad(), reference() as model:
            reference_R = pairs.totals(model, batch)
        ratio_B, foreign_B = (pairs.totals(policy, batch) - reference_R).chunk(2)
        drift = foreign_B.detach().mean().clamp(min=0)
        liked_B = batch["liked"]
        ahead_B = torch.where(liked_B, ratio_B - drift, drift - ratio_B)
        weight_B = torch.where(liked_B, self.desirable, self.undesirable)
        loss = (weight_B * (1 - (self.beta * ahead_B).sigmoid())).mean()
        return loss, {"accuracy": (ahead_B > 0).float().mean(), "drift": drift}
