"""RTN: round every group of weights to the nearest of 2^bits levels. The baseline of Frantar et al. 2022,
arXiv:2210.17323, section 4.

w_oi ~ s (q_oi - z) with q in [-2^(bits-1), 2^(bits-1) - 1]; a group's levels span min(w, 0) to max(w, 0), or with
`symmetric` -max|w| to max|w| around z = 0. No data; cost: one pass over the weights. The integers are packed without
gaps (3 bits take 3 bits); transformers reads every width, vLLM's kernels only 4 (and 8). O = out_features, I = inputs.
"""

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from stages.lib.nets import calibrate
from stages.quantize import Grouped
from stages.quantize.parts import compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RTN(Grouped):
    method: Literal["rtn"]
    bits: Literal[2, 3, 4] = 4
    calibration: None = None

    def packs_experts(self) -> bool:
        return True

    def quantize(self, model: "PreTrainedModel", rows: Tensor) -> "PreTrainedModel":
        self.check_widths(calibrate.linears(model))
        from llmcompressor.modifiers.quantization import QuantizationModifier

        scheme = compressed.scheme(model, self.integers(self.bits))
        return compressed.oneshot(model, [QuantizationModifier(**scheme)])
