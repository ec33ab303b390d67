"""BitNet b1.58: a model trained with ternary weights, packed in 2 bits each. Ma et al. 2024, arXiv:2402.17764, eq. 1.

w = s q with q in {-1, 0, 1}: nothing is rounded, so a model without such weights is refused (`fake_quantize` in its
training makes them, stages/lib/nets/rounding.py). q takes 2 bits as one of four levels; s is written once for every row
of outputs. llama.cpp's TQ1_0 (stages/export/gguf.py) is smaller, five weights in a byte. No data; cost: one pass over
the weights.
"""

from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from stages.lib.nets import calibrate, rounding
from stages.quantize import Quantization
from stages.quantize.parts import compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BitNet(Quantization):
    method: Literal["bitnet"]
    calibration: None = None

    def quantize(self, model: "PreTrainedModel", rows: Tensor) -> "PreTrainedModel":
        rounding.require_ternary(model, "bitnet")
        from llmcompressor.modifiers.quantization import QuantizationModifier

        levels = {"num_bits": 2, "type": "int", "strategy": "channel", "symmetric": True}  # -2, -1, 0, 1
        scales = {name: rounding.scale_of(layer.weight) for name, layer in calibrate.linears(model).items()}
        model = compressed.oneshot(model, [QuantizationModifier(**compressed.scheme(model, levels))])
        for name, layer in calibrate.linears(model).items():
            scale: Any = layer.weight_scale
            scale.data.fill_(scales[name])  # that of two symmetric bits would put s at 1.5 levels
        return model
