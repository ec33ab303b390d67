"""A reward model: it gives the reply that was liked better the higher score. Bradley & Terry 1952; of language models
Ouyang et al. 2022, arXiv:2203.02155, eq. 1.

    -log s(r(c) - r(w)) + centre (r(c) + r(w))^2      c chosen, w rejected, s the logistic function

Only differences are learnt; `centre` holds them around zero (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2). Where
the score stands in the model: stages/lib/nets/reward.py; what it is good for: traces/rewarded. Cost: one pass forward
and backward over both replies. Shapes: B pairs, P held-out pairs.
"""

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from stages.align import Reference
from stages.align.parts import pairs
from stages.lib.nets import reward
from stages.lib.store.records import Record
from stages.lib.text import packing
from stages.lib.training import loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Reward(pairs.OfPairs):
    method: Literal["reward"]
    centre: NonNegativeFloat = 0.01

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chosen_B, rejected_B = reward.scores(policy, batch).chunk(2)
        ahead_B = chosen_B - rejected_B
        loss = -F.logsigmoid(ahead_B).mean() + self.centre * (chosen_B + rejected_B).square().mean()
        return loss, {"score_margin": ahead_B.mean(), "accuracy": (ahead_B > 0).float().mean()}

    @torch.no_grad()
    def compare(
        self,
        before: "PreTrainedModel",
        after: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        preferences: list[Record],
    ) -> dict[str, float]:
        if not preferences:
            return {}
        found: dict[str, float] = {}
        known = pairs.encode(tokenizer, preferences, self.context)
        for when, model in (("before", before), ("after", after)):
            parts = (loop.to_device(pairs.together([pair]), model.device) for pair in known)
            ahead_P = torch.cat([torch.sub(*reward.scores(model, part).chunk(2)) for part in parts])
            found[f"score_accuracy_{when}"] = (ahead_P > 0).float().mean().item()
            found[f"score_margin_{when}"] = ahead_P.mean().item()
        return found
