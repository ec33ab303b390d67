"""Group-relative policy optimisation: several steps on the same replies, held near the weights that wrote them. Shao
et al. 2024 (DeepSeekMath), arXiv:2402.03300, eq. 3; its successors are parameters of the one loss.

    w = pi(y_t) / pi_drawn(y_t)      A = (r - mean r) / (std r + 1e-4), over the replies to a prompt
    loss_t = -min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)

ratio: reply         w is one for a reply, the geometric mean over its tokens (GSPO, Zheng et al. 2025,
                     arXiv:2507.18071, eq. 7)
clip: weight         loss_t = -min(w, 1 + clip_high) A log pi(y_t), no gradient through w (CISPO, MiniMax 2025,
                     arXiv:2506.13585, eq. 4)
average_over: reply  the mean over replies of means over their tokens, as in the paper; token: the mean over all tokens
                     (DAPO, Yu et al. 2025, arXiv:2503.14476, section 3.3); room: the sum over replies and their
                     `max_new_tokens` (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, section 3.2)
scale: false         A = r - mean r (Dr. GRPO)
clip_high > clip_low rare tokens may become likelier faster (DAPO, section 3.1)
truncated: false     replies that were cut off are not learnt from (DAPO, section 3.4)

Cost: see stages/align/parts/online.py; the replies serve `updates` steps. Shapes: as there.
"""

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor

from stages.align.parts import online

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY = 1e-4  # TRL's and the paper's code


class GRPO(online.Repeated):
    method: Literal["grpo"]
    ratio: Literal["token", "reply"] = "token"
    clip: Literal["surrogate", "weight"] = "surrogate"
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.28
    average_over: Literal["reply", "token", "room"] = "token"
    scale: bool = True
    truncated: bool = True  # whether replies that were cut off are learnt from

    @model_validator(mode="after")
    def clipped_below(self) -> "GRPO":
        if self.clip == "weight":
            self.refuse_idle("clip_low", "with `clip: surrogate`")
        return self

    def advantages(self, rewards_GK: Tensor) -> Tensor:
        ahead_GK = rewards_GK - rewards_GK.mean(1, keepdim=True)
        return ahead_GK / (rewards_GK.std(1, keepdim=True) + TINY) if self.scale else ahead_GK

    def losses(self, tokens: online.Tokens, policy: "PreTrainedModel") -> tuple[Tensor, dict[str, Tensor]]:
        ratio_N = tokens.log_p - tokens.drawn
        if self.ratio == "reply":
            ratio_N = (tokens.per_reply(ratio_N) / tokens.lengths)[tokens.row]
        ratio_N, advantage_N = ratio_N.exp(), tokens.advantage[tokens.row]
        above_N, below_N = ratio_N > 1 + self.clip_high, ratio_N < 1 - self.clip_low
        if self.clip == "weight":
            weight_N = ratio_N.detach().clamp(max=1 + self.clip_high)
            return -weight_N * advantage_N * tokens.log_p, {"clipped": above_N.float().mean()}
        idle_N = (above_N & (advantage_N > 0)) | (below_N & (advantage_N < 0))
        loss_N = online.surrogate(ratio_N, advantage_N, self.clip_low, self.clip_high)
        return loss_N, {"clipped": idle_N.float().mean()}

    def counted(self, lengths_B: Tensor, stopped_B: Tensor) -> Tensor:
        counts_B = torch.ones_like(stopped_B) if self.truncated else stopped_B
        return lengths_B[counts_B].sum() if self.average_over == "token" else counts_B.sum()

    def average(self, loss_N: Tensor, tokens: online.Tokens) -> Tensor:
        counts_B = torch.ones_like(tokens.stopped) if self.truncated else tokens.stopped
        if not counts_B.any():
            return 0 * loss_N.sum()
        sums_B, lengths_B = tokens.per_reply(loss_N)[counts_B], tokens.lengths[counts_B]
        match self.average_over:
            case "reply":
                return (sums_B / lengths_B).mean()
            case "token":
                return sums_B.sum() / lengths_B.sum()
            case "room":
                return sums_B.sum() / (len(sums_B) * self.max_new_tokens)
