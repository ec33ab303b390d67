"""NF4: 4-bit codes at the quantiles of a normal distribution, with doubly quantized scales. Dettmers et al. 2023
(QLoRA), arXiv:2305.14314, section 3.

w ~ s_b * code[q], q in 0..15: each block b of 64 weights is divided by s_b = max|w| and goes to the nearest of 16
values in [-1, 1] that split a normal distribution evenly, 0 and both ends among them. With `double` the scales become
8-bit codes in blocks of 256. No data; cost: one pass over the weights. The format is bitsandbytes', which transformers
and PEFT (QLoRA) read; for every Linear its file also holds both tables of codes, 1.3 kB.
"""

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from stages.lib.nets import anatomy, calibrate
from stages.lib.nets.anatomy import Matrix
from stages.lib.store import nf4
from stages.quantize import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NF4(Quantization):
    FORMAT = "bitsandbytes"

    method: Literal["nf4"]
    calibration: None = None
    double: bool = True

    def quantize(self, model: "PreTrainedModel", rows: Tensor) -> "PreTrainedModel":
        from transformers import BitsAndBytesConfig
        from transformers.quantizers.auto import AutoHfQuantizer

        layers = calibrate.linears(model)
        matrices = {name: Matrix(layer) for name, layer in layers.items()} | anatomy.matrices(model)  # Conv1Ds too
        calibrate.check_widths(matrices, nf4.BLOCK, f"nf4, block {nf4.BLOCK},")
        for name, matrix in matrices.items():
            packed = nf4.packed(matrix.weight, getattr(matrix.module, "bias", None), self.double)
            model.set_submodule(name, packed)
        stay = [n for n, each in model.named_modules() if isinstance(each, nn.Linear) and n not in matrices]
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=stay,
        )
        model.config.quantization_config = config
        model.hf_quantizer = AutoHfQuantizer.from_config(config)
        return model
