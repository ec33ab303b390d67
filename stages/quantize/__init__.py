"""Quantize: a model in, the same model with few bits a weight out, as compressed-tensors (nf4: bitsandbytes).

In   model artefact, token artefact (calibration and held-out rows)
Out  model artefact that transformers loads, and vLLM where it has a kernel; metrics of the file as reloaded:
     loss_before, loss_after, kl (parent || quantized; all in nats/token on held-out rows), same_top (share of
     positions), bits_per_weight (of the quantized Linears, scales counted), bits_per_weight_model (of all parameters),
     bytes (of the weight files)

A technique is one file here. It defines `Params` and `quantize(model, rows, params) -> model`, where rows (N, T) are
the calibration rows, or None if its params ask for none. It may change the model in place: the Linears then compute
with rounded weights and carry what packing needs (`quantization_scheme` of compressed-tensors), or are packed already,
as the model's config then says. Embeddings and head stay as they are.
"""

from typing import Any, Literal

from pydantic import PositiveInt

from stages.lib.frame.params import Calibration, Parent, Variant


class Quantization(Variant):
    """What every technique's variants share."""

    model: Parent
    tokens: Parent
    calibration: Calibration | None = None
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of the scales and of all that is not quantized
    held_out_rows: PositiveInt = 64


class Grouped(Quantization):
    """Integers of few bits; neighbours in a row share a scale."""

    group_size: Literal[32, 64, 128] = 128  # widths that vLLM's kernels take
    symmetric: bool = False  # without a zero point: at 2 bits the levels -2, -1, 0, 1

    def integers(self, bits: int) -> dict[str, Any]:
        """In the words of compressed-tensors."""
        group = {"strategy": "group", "group_size": self.group_size, "symmetric": self.symmetric}
        return {"num_bits": bits, "type": "int", **group}
