"""Quantize: a model in, the same model with few bits a weight out, in the compressed-tensors format.

In   model artefact, token artefact (calibration and held-out rows)
Out  model artefact that transformers and vLLM load; metrics of the file as reloaded: loss_before, loss_after, kl
     (parent || quantized; all in nats/token on held-out rows), same_top (share of positions), bits_per_weight (of the
     quantized Linears, scales counted), bits_per_weight_model (of all parameters), bytes (of the weight files)

A technique is one file here. It defines `Params` and `quantize(model, rows, params) -> model`, where rows (N, T) are
the calibration rows, or None if its params ask for none. It may change the model in place: the Linears then compute
with rounded weights and carry what packing needs (`quantization_scheme` of compressed-tensors). Embeddings and head
stay as they are.
"""

from typing import Literal

from pydantic import PositiveInt

from stages.lib.params import Calibration, Parent, Variant


class Quantization(Variant):
    """What every technique's variants share."""

    model: Parent
    tokens: Parent
    calibration: Calibration | None = None
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of the scales and of all that is not quantized
    held_out_rows: PositiveInt = 64
