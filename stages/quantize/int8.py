"""Round to the nearest of 255 levels per output channel. Dettmers et al. 2022, arXiv:2208.07339, section 2.1 (absmax).

w_oi ~ s_o * q_oi with s_o = max_i |w_oi| / 127.5, q in [-128, 127]: an error of at most half a step s_o. With
`activations` the inputs are rounded too, one scale a token, found as it passes (W8A8). No data; cost: one pass over
the weights. Shapes: O = out_features, I = in_features.
"""

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from stages.quantize import Quantization
from stages.quantize.parts import compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Int8(Quantization):
    method: Literal["int8"]
    activations: bool = False
    calibration: None = None

    def packs_experts(self) -> bool:
        return not self.activations  # transformers reads packed experts, not such

    def quantize(self, model: "PreTrainedModel", rows: Tensor) -> "PreTrainedModel":
        from llmcompressor.modifiers.quantization import QuantizationModifier

        inputs = compressed.BYTES_A_TOKEN if self.activations else None
        scheme = compressed.scheme(model, compressed.BYTES, inputs)
        return compressed.oneshot(model, [QuantizationModifier(**scheme)])
