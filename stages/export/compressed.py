"""Compressed-tensors: integers and scales as vLLM reads them. github.com/vllm-project/compressed-tensors, 2024.

What a variant of quantize made, packed as it is: nothing is rounded a second time. Cost: one copy of the file.
"""

from pathlib import Path
from typing import Any, Literal

from stages.export import Export
from stages.export.parts import dense_model
from stages.lib.frame.errors import UserError

NAME, load = "compressed-tensors", dense_model.stored
RUN = """\
    vllm serve "this folder"
    transformers.pipeline("text-generation", "this folder")
"""


class Params(Export):
    method: Literal["compressed"]


def write(model: Any, tokenizer: Any, folder: Path, p: Params) -> None:
    about = getattr(model.config, "quantization_config", None)
    if about is None:
        raise UserError(
            f"compressed export packs nothing itself: {p.model} is not quantized, name a variant of quantize"
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
