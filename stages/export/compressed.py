"""Compressed-tensors: integers and scales as vLLM reads them. github.com/vllm-project/compressed-tensors, 2024.

What a variant of quantize made, packed as it is: nothing is rounded a second time. Cost: one copy of the file.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from stages.export import Export
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.transformers import Transformers
from stages.lib.store import dense, folders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Compressed(Export):
    FORMAT = "compressed-tensors"
    RUN = """\
    vllm serve "this folder"
    transformers.pipeline("text-generation", "this folder")
"""

    method: Literal["compressed"]

    def load(self, folder: Path) -> Any:
        return dense.stored(folder)

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        if getattr(model.config, "quantization_config", None) is None:
            reason = f"{self.model} is not quantized, name a variant of quantize"
            raise UserError(f"compressed export packs nothing itself: {reason}")
        for pattern in ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"):
            for file in Path(model.name_or_path).glob(pattern):  # a copy: transformers can't save packed experts again
                shutil.copyfile(file, folder / file.name)
        tokenizer.save_pretrained(folder)
        folders.finish(folder)

    def open(self, folder: Path) -> Transformers:
        return Transformers(folder)
