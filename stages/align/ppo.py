"""Proximal policy optimisation: every token is worth what the reply turned out better than a value head had expected
there. Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9; of language models Ouyang et al. 2022, arXiv:2203.02155.

    d_t = r_t + V_(t+1) - V_t      r the reply's reward at its last token, else 0; V 0 behind it
    A_t = sum_k trace^k d_(t+k)    Schulman et al. 2015, arXiv:1506.02438, eq. 16, nothing discounted
    w_t = pi(y_t) / pi_drawn(y_t)
    loss = -min(w A', clip(w, 1 - clip, 1 + clip) A') + value_weight (V_t - (A_t + V_t'))^2

A' is A at mean 0 and deviation 1 over the part; ' and A take no gradient. V is a linear map of the last hidden state,
learnt beside the model and left out of it; advantages are those of its present weights (Andrychowicz et al. 2020,
arXiv:2006.05990, section 3.5, found that better than those of the weights that drew). Where all replies to a prompt can
be compared, `grpo` and `reinforce` need no such head. Cost: see stages/align/parts/online.py.
Shapes: B replies, N reply tokens, R of the longest, D hidden.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from stages.align import SCAFFOLD
from stages.align.parts import online

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = 1e-8


class PPO(online.Repeated):
    method: Literal["ppo"]
    group: int = Field(1, ge=1)  # replies to a prompt
    clip: PositiveFloat = 0.2
    trace: float = Field(0.95, ge=0, le=1)  # lambda of the advantages: 1 is the whole reply, 0 the next token's value
    value_weight: PositiveFloat = 0.5

    def scaffold(self, policy: "PreTrainedModel") -> nn.Module:
        words = policy.get_output_embeddings()
        assert words is not None, "a model that writes has a head"
        head = nn.Linear(words.weight.shape[1], 1, device=policy.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def live(self, rewards_GK: Tensor) -> Tensor:
        """Replies are compared with what was expected, not with each other: all count, unless all are the same."""
        return (rewards_GK.amax() > rewards_GK.amin()).expand(len(rewards_GK))

    def advantages(self, rewards_GK: Tensor) -> Tensor:
        return rewards_GK

    def losses(self, tokens: online.Tokens, policy: "PreTrainedModel") -> tuple[Tensor, dict[str, Tensor]]:
        value_N = policy.get_submodule(SCAFFOLD)(tokens.state)[:, 0].float()
        advantage_N = self.ahead(value_N.detach(), tokens)
        target_N = advantage_N + value_N.detach()
        deviation = advantage_N.std(correction=0)
        whitened_N = (advantage_N - advantage_N.mean()) / (deviation + TINY)
        ratio_N = (tokens.log_p - tokens.drawn).exp()
        policy_N = online.surrogate(ratio_N, whitened_N, self.clip, self.clip)
        outside_N = (ratio_N < 1 - self.clip) | (ratio_N > 1 + self.clip)
        value_loss_N = (value_N - target_N).square()
        measures = {"value_loss": value_loss_N.mean(), "clipped": outside_N.float().mean()}
        return policy_N + self.value_weight * value_loss_N, measures

    def ahead(self, value_N: Tensor, tokens: online.Tokens) -> Tensor:
        """The generalised advantage of every token, (N,)."""
        length_B, reward_B = tokens.lengths, tokens.advantage
        places = torch.arange(int(length_B.max()), device=length_B.device)
        said_BR = places < length_B[:, None]
        value_BR = value_N.new_zeros(said_BR.shape).masked_scatter(said_BR, value_N)
        last_BR = places == length_B[:, None] - 1
        found_BR, later_B = torch.zeros_like(value_BR), value_BR.new_zeros(len(value_BR))
        for place in reversed(range(len(places))):
            last_B = last_BR[:, place]
            next_B = value_BR[:, place + 1] if place + 1 < len(places) else torch.zeros_like(later_B)
            surprise_B = torch.where(last_B, reward_B, next_B) - value_BR[:, place]
            later_B = surprise_B + torch.where(last_B, 0.0, self.trace * later_B)
            found_BR[:, place] = later_B
        return found_BR[said_BR]

    def counted(self, lengths_B: Tensor, stopped_B: Tensor) -> Tensor:
        return lengths_B.sum()

    def average(self, loss_N: Tensor, tokens: online.Tokens) -> Tensor:
        return loss_N.mean()
