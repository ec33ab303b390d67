"""SmoothQuant: hand the outliers of the activations to the weights, then round both to int8. Xiao et al. 2022,
arXiv:2211.10438, eq. 3 and 4.

Y = (X diag(s)^-1) (diag(s) W^T),  s_i = max|x_i|^strength / max|w_i|^(1 - strength)

llmcompressor takes ranges, max - min of x_i and 2 max|w_i|, for the paper's maxima: the same but for lopsided inputs.
diag(s)^-1 goes into the norm before, so only the inputs of attention and of the first FFN layers are smoothed. Rounding
as int8 with `activations`: one scale an output channel, one a token as it passes (W8A8).
Cost: one forward pass over the calibration rows.
"""

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from stages.lib.frame.params import Calibration, Share
from stages.quantize import Quantization
from stages.quantize.parts import compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SmoothQuant(Quantization):
    method: Literal["smoothquant"]
    calibration: Calibration = Calibration(rows=16)
    strength: Share = 0.5

    def quantize(self, model: "PreTrainedModel", rows: Tensor) -> "PreTrainedModel":
        feeds = compressed.feeds(model, self, norms=True)
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        scheme = compressed.scheme(model, compressed.BYTES, compressed.BYTES_A_TOKEN)
        mappings: list[Any] = [([f"re:.*{each}$" for each in readers], f"re:.*{norm}$") for norm, readers in feeds]
        smooth = SmoothQuantModifier(smoothing_strength=self.strength, mappings=mappings)
        return compressed.oneshot(model, [smooth, QuantizationModifier(**scheme)], rows)
