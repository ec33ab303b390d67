"""Safetensors: the Hugging Face folder that transformers, vLLM and TGI read. github.com/huggingface/safetensors, 2022.

Every weight in 16-bit floats, half the bytes of training's 32. Cost: one pass over the weights.
"""

from pathlib import Path
from typing import Any, Literal

from stages.export import Export
from stages.export.parts import dense_model

NAME, load = "safetensors, 16-bit floats", dense_model.load
RUN = """\
    transformers.pipeline("text-generation", "this folder")
"""


class Params(Export):
    method: Literal["safetensors"]


def write(model: Any, tokenizer: Any, folder: Path, p: Params) -> None:
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
