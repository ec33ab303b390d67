"""GPTQ: round column by column, and let the columns not yet rounded make up for the error. Frantar et al. 2022,
arXiv:2210.17323, algorithm 1.

For each column j of W, with H = 2 X X^T + damping and U the upper Cholesky factor of its inverse:

    q_j = round(w_j),  e = (w_j - q_j) / U_jj,  w_k -= e U_jk for all k > j

Blocks are rounded in order, each on the inputs that the rounded blocks before it produce. With `act_order` the columns
with the largest inputs come first, in the groups they had ("static"). Widths and packing as in rtn.
Cost: one forward pass over the calibration rows for every block, and a Cholesky factor of (inputs, inputs) a Linear.
"""

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from stages.lib.frame.params import Calibration, Share
from stages.lib.nets import calibrate
from stages.quantize import Grouped
from stages.quantize.parts import compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GPTQ(Grouped):
    method: Literal["gptq"]
    bits: Literal[2, 3, 4] = 4
    calibration: Calibration = Calibration()
    damping: Share = 0.01  # of the mean of H's diagonal
    act_order: bool = True

    def packs_experts(self) -> bool:
        return True

    def quantize(self, model: "PreTrainedModel", rows: Tensor) -> "PreTrainedModel":
        self.check_widths(calibrate.linears(model))
        from llmcompressor.modifiers.gptq import GPTQModifier

        scheme = compressed.scheme(model, self.integers(self.bits))
        order: Any = "static" if self.act_order else None
        solver = GPTQModifier(dampening_frac=self.damping, actorder=order, **scheme)
        return compressed.oneshot(model, [solver], rows)
