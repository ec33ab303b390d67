"""Direct preference optimisation: chosen replies become likelier than rejected ones, relative to the model as it came.
Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

    r(y) = log pi(y | x) - log pi_ref(y | x)      c chosen, w rejected, d = r(c) - r(w), s the logistic function

sigmoid    -log s(beta d), the paper's
robust     (-(1 - e) log s(beta d) + e log s(-beta d)) / (1 - 2 e), if a share e of the pairs is the wrong way round:
           Chowdhury et al. 2024, arXiv:2403.00409
hinge      max(0, 1 - beta d): SLiC, Zhao et al. 2023, arXiv:2305.10425, on log-ratios as in arXiv:2309.06657
ipo        (r(c) / |c| - r(w) / |w| - 1 / (2 beta))^2: Azar et al. 2023, arXiv:2310.12036, eq. 17, a token, so that
           long replies count no more than short ones
apo_zero   1 - s(beta r(c)) + s(beta r(w)): D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7
sppo_hard  (r(c) - 1 / (2 beta))^2 + (r(w) + 1 / (2 beta))^2: Wu et al. 2024, arXiv:2405.00675, eq. 4.7, if the chosen
           reply always wins

All of them may push the chosen reply down as long as the other falls faster; `sft_weight` adds its loss, as in
Pang et al. 2024, arXiv:2404.19733, eq. 1.

The reference is a copy of the model; with LoRA it is the model with its adapters off, which costs no memory. Cost: two
passes forward and one backward over both replies. Shapes: B pairs.
"""

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from stages.align import Reference
from stages.align.parts import pairs
from stages.lib.text import packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DPO(pairs.OfPairs):
    method: Literal["dpo"]
    beta: PositiveFloat = 0.1  # weight of staying near the reference
    preference_loss: Literal["sigmoid", "robust", "hinge", "ipo", "apo_zero", "sppo_hard"] = "sigmoid"
    sft_weight: NonNegativeFloat = 0.0  # of the chosen replies' own loss, nats/token, beside it
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # of robust: the share of pairs that are the wrong way round

    @model_validator(mode="after")
    def smoothing_fits(self) -> "DPO":
        if self.preference_loss != "robust":
            self.refuse_idle("label_smoothing", "with `preference_loss: robust`")
        elif not self.label_smoothing:
            raise ValueError("robust with label_smoothing 0 is the sigmoid loss: say what share of the pairs is wrong")
        return self

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad(), reference() as model:
            reference_chosen_B, reference_rejected_B = pairs.log_probabilities(model, batch)
        chosen_B, rejected_B = pairs.log_probabilities(policy, batch)
        ratio_chosen_B, ratio_rejected_B = chosen_B - reference_chosen_B, rejected_B - reference_rejected_B
        lengths = pairs.lengths(batch)
        loss = self.losses(ratio_chosen_B, ratio_rejected_B, *lengths).mean()
        if self.sft_weight:
            loss = loss - self.sft_weight * (chosen_B / lengths[0]).mean()
        return loss, pairs.measures(ratio_chosen_B - ratio_rejected_B, chosen_B, rejected_B)

    def losses(
        self, ratio_chosen_B: Tensor, ratio_rejected_B: Tensor, length_chosen_B: Tensor, length_rejected_B: Tensor
    ) -> Tensor:
        """The loss of every pair, (B,), from r(c), r(w) and how many tokens the replies have."""
        beta, wrong, target = self.beta, self.label_smoothing, 1 / (2 * self.beta)
        score_B = beta * (ratio_chosen_B - ratio_rejected_B)
        match self.preference_loss:
            case "sigmoid":
                return -F.logsigmoid(score_B)
            case "robust":
                return (-(1 - wrong) * F.logsigmoid(score_B) + wrong * F.logsigmoid(-score_B)) / (1 - 2 * wrong)
            case "hinge":
                return (1 - score_B).relu()
            case "ipo":
                return (ratio_chosen_B / length_chosen_B - ratio_rejected_B / length_rejected_B - target).square()
            case "apo_zero":
                return 1 - (beta * ratio_chosen_B).sigmoid() + (beta * ratio_rejected_B).sigmoid()
            case "sppo_hard":
                return (ratio_chosen_B - target).square() + (ratio_rejected_B + target).square()
