"""Safetensors: the Hugging Face folder that transformers, vLLM and TGI read. github.com/huggingface/safetensors, 2022.

Every weight in 16-bit floats, half the bytes of training's 32. Cost: one pass over the weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from stages.export import Export
from stages.lib.runtimes.transformers import Transformers
from stages.lib.store import models

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Safetensors(Export):
    FORMAT = "safetensors, 16-bit floats"
    RUN = """\
    transformers.pipeline("text-generation", "this folder")
"""

    method: Literal["safetensors"]

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        models.write(model.half(), tokenizer, folder)

    def open(self, folder: Path) -> Transformers:
        return Transformers(folder)
