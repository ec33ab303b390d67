"""Quantize: a model in, the same model with few bits a weight out, as compressed-tensors (nf4: bitsandbytes).

In   model artefact, token artefact (calibration and held-out rows)
Out  model artefact that transformers loads, and vLLM where it has a kernel; metrics of the file as reloaded:
     loss_before, loss_after, kl (parent || quantized; all in nats/token on held-out rows), same_top (share of
     positions), bits_per_weight (of the quantized matrices, scales counted), bits_per_weight_model (of all parameters),
     bytes (of the weight files)

A mixture of experts comes as Linears, one by one, and is packed where transformers reads it so; its routers stay.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from pydantic import PositiveInt

from stages.lib.frame.params import Calibration, Model, Tokens, Variant
from stages.lib.nets import calibrate

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

Size = Literal[32, 64, 128]  # of a group; widths that vLLM's kernels take


class Quantization(Variant, ABC):
    """The contract of a technique."""

    FORMAT: ClassVar[Literal["compressed-tensors", "bitsandbytes"]] = "compressed-tensors"

    model: Model
    tokens: Tokens
    calibration: Calibration | None = None
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"  # of the scales and of all that is not quantized
    held_out_rows: PositiveInt = 64

    @abstractmethod
    def quantize(self, model: "PreTrainedModel", rows: "Tensor") -> "PreTrainedModel":
        """The quantized model, perhaps the same object changed in place; embeddings and head stay as they are.

        `rows` (N, T) are the calibration rows, (0, 0) where `calibration` is None. The Linears that come back compute
        with rounded weights and carry what packing needs (`quantization_scheme` of compressed-tensors), or are packed
        already, as the model's config then says.
        """

    def packs_experts(self) -> bool:
        """Whether the matrices of single experts are rounded too."""
        return False


class Grouped(Quantization):
    """Integers of few bits; neighbours in a row share a scale."""

    group_size: Size = 128
    symmetric: bool = False  # without a zero point, as experts always are: at 2 bits the levels -2, -1, 0, 1

    def check_widths(self, layers: "Mapping[str, nn.Linear]") -> None:
        """Refuse, before any work, rows that are no whole groups."""
        calibrate.check_widths(layers, self.group_size, f"group_size {self.group_size}", get_args(Size))

    def integers(self, bits: int) -> dict[str, Any]:
        """In the words of compressed-tensors."""
        group = {"strategy": "group", "group_size": self.group_size, "symmetric": self.symmetric}
        return {"num_bits": bits, "type": "int", **group}
