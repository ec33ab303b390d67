"""AWQ: scale up the weights that meet large inputs before rounding. Lin et al. 2023, arXiv:2306.00978, eq. 4 and 5.

W X = (W diag(s)) (diag(s)^-1 X); s = mean|x|^a / mean|w|^(1-a) takes the a in [0, 1] that changes the output of the
calibration rows least, and diag(s)^-1 goes into the layer before. Widths and packing as in rtn.

With `clip` (section 3.2) the levels of a group of weights w then span no more than the share c of its largest |w|:

    least  d^T (sum_m x_m x_m^T) d  over c in [1/2, 1],  d = round(w; c) - w

which is the squared error of the group's part of the output over all calibration tokens m. Queries and keys keep their
range, since their errors meet in a product. Cost: for every scale, `grid` passes of the calibration rows through a part
of one block; clipping, one pass more and 11 O I S a layer. O = out_features, I = inputs, in G groups of S; M = tokens.
"""

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from stages.lib.frame.params import Calibration
from stages.lib.nets import anatomy, calibrate
from stages.quantize import Grouped
from stages.quantize.parts import compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARES = [1 - step / 20 for step in range(11)]


class AWQ(Grouped):
    method: Literal["awq"]
    bits: Literal[2, 3, 4] = 4
    calibration: Calibration = Calibration(rows=16)
    grid: int = Field(20, ge=4)  # values of a that are tried
    clip: bool = True

    def quantize(self, model: "PreTrainedModel", rows: Tensor) -> "PreTrainedModel":
        feeds = compressed.feeds(model, self)
        self.check_widths(calibrate.linears(model))
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

        scheme = compressed.scheme(model, self.integers(self.bits))
        mappings = [AWQMapping(f"re:.*{writer}$", [f"re:.*{each}$" for each in readers]) for writer, readers in feeds]
        scale = AWQModifier(n_grid=self.grid, mappings=mappings)
        model = compressed.oneshot(model, [scale, QuantizationModifier(**scheme)], rows)
        if self.clip:
            every = calibrate.linears(model)
            layers = {name: layer for name, layer in every.items() if name.rsplit(".", 1)[-1] not in anatomy.ATTENDED}
            for name, moments_GSS in group_moments(model, rows, layers, self.group_size).items():
                clip(layers[name], moments_GSS)
        return model


def group_moments(model: nn.Module, rows_NT: Tensor, layers: dict[str, nn.Linear], size: int) -> dict[str, Tensor]:
    """sum_m x_m x_m^T of every group of inputs, (G, S, S) for each layer."""
    sums_GSS = {n: layer.weight.new_zeros(layer.in_features // size, size, size) for n, layer in layers.items()}

    def add(name: str, x_MI: Tensor) -> None:
        x_GMS = x_MI.unflatten(1, (-1, size)).transpose(0, 1)
        sums_GSS[name].baddbmm_(x_GMS.mT, x_GMS)

    calibrate.observe(model, rows_NT, layers, add)
    return sums_GSS


@torch.no_grad()
def clip(layer: Any, moments_GSS: Tensor) -> None:
    """Give every group of the layer's weights the scale and zero point of its best share."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    scheme = layer.quantization_scheme.weights
    weight_OGS = layer.weight.unflatten(1, moments_GSS.shape[:2])
    largest_OG = weight_OGS.abs().amax(-1)
    least_OG = torch.full_like(largest_OG, torch.inf)
    for share in SHARES:
        low_OG, high_OG = (end.clamp(-share * largest_OG, share * largest_OG) for end in weight_OGS.aminmax(dim=-1))
        scale_OG, zero_OG = calculate_qparams(low_OG, high_OG, scheme)
        error_OGS = (fake_quantize(layer.weight, scale_OG, zero_OG, scheme) - layer.weight).view_as(weight_OGS)
        loss_OG = (torch.einsum("ogs,gst->ogt", error_OGS, moments_GSS) * error_OGS).sum(-1)
        better_OG = loss_OG < least_OG
        least_OG = least_OG.minimum(loss_OG)
        layer.weight_scale.copy_(torch.where(better_OG, scale_OG, layer.weight_scale))
        if not scheme.symmetric:
            layer.weight_zero_point.copy_(torch.where(better_OG, zero_OG, layer.weight_zero_point))
