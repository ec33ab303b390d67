"""REINFORCE with the other replies of a group as the baseline (RLOO), no clipping: the reference that others are
measured against. Ahmadian et al. 2024, arXiv:2402.14740; the baseline is that of Kool et al. 2019.

    - 1/B sum_i (r_i - mean of r_j, j another reply to the prompt) sum_t log pi(y_it | x, y_i<t)

Every reply is learnt from once, by the weights that wrote it, so no ratio of probabilities is needed. Cost: see
stages/align/parts/online.py.
"""

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from stages.align.parts import online

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reinforce(online.Online):
    method: Literal["reinforce"]

    def advantages(self, rewards_GK: Tensor) -> Tensor:
        others_GK = (rewards_GK.sum(1, keepdim=True) - rewards_GK) / (self.group - 1)
        return rewards_GK - others_GK

    def losses(self, tokens: online.Tokens, policy: "PreTrainedModel") -> tuple[Tensor, dict[str, Tensor]]:
        return -tokens.advantage[tokens.row] * tokens.log_p, {}

    def average(self, loss_N: Tensor, tokens: online.Tokens) -> Tensor:
        return tokens.per_reply(loss_N).mean()
