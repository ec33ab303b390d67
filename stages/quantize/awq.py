"""AWQ: scale up the weights that meet large inputs before rounding. Lin et al. 2023, arXiv:2306.00978, eq. 4 and 5.

W X = (W diag(s)) (diag(s)^-1 X); s = mean|x|^a / mean|w|^(1-a) takes the a in [0, 1] that changes the output of the
calibration rows least, and diag(s)^-1 goes into the layer before. Widths and packing as in rtn.
Cost: for every scale, `grid` passes of the calibration rows through a part of one block.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from stages.lib import calibrate
from stages.lib.params import Calibration
from stages.quantize import Grouped, _compressed


class Params(Grouped):
    method: Literal["awq"]
    bits: Literal[2, 3, 4] = 4
    calibration: Calibration = Calibration(rows=16)
    grid: int = Field(20, ge=4)  # values of a that are tried


def quantize(model: nn.Module, rows_NT: Tensor, p: Params) -> nn.Module:
    _compressed.require_known(model, p.method)
    calibrate.check_widths(calibrate.linears(model), p.group_size, f"group_size {p.group_size}")
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    scheme = _compressed.scheme(model, p.integers(p.bits))
    return _compressed.oneshot(model, [AWQModifier(n_grid=p.grid), QuantizationModifier(**scheme)], rows_NT)
