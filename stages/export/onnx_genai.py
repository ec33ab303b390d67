"""ONNX for onnxruntime-genai: fused attention, rounded weights. github.com/microsoft/onnxruntime-genai, 2024.

The same computation as `onnx`, written by Microsoft's builder with one operation for attention, rotation and cache
(GroupQueryAttention) and one for a product with packed integers (MatMulNBits: blocks of 32 inputs, one scale each).
What runs it (Windows ML, Foundry Local, phones) also does the loop over tokens, by genai_config.json. Embeddings and
head are rounded too. Cost: one pass over the weights.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stages.export import Export
from stages.export.parts import blocks, quiet
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.onnx import Onnx

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLOCK = 32  # inputs that share one scale


class ONNXGenAI(Export):
    FORMAT = "ONNX for onnxruntime-genai {type}"
    RUN = """\
    onnxruntime_genai.Model("this folder")             # then Tokenizer, Generator: see its examples
"""

    method: Literal["onnx_genai"]
    type: Literal["int8", "int4"]

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        check(model, self.model)
        source = folder / "source"
        model.cpu().save_pretrained(source)
        tokenizer.save_pretrained(source)
        with quiet.quiet():
            build(source, folder, self.type)
        shutil.rmtree(source)
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)

    def open(self, folder: Path) -> Onnx:
        return Onnx(folder)


def check(model: Any, parent: str) -> None:
    """Refuse what the builder would write wrongly, or only after a while."""
    config = model.config
    if config.model_type != "llama":
        raise UserError(f"onnx_genai export knows llama models, not {config.model_type} ({parent}): choose onnx")
    head = model.get_output_embeddings()
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and layer.out_features == config.vocab_size and layer is not head:
            raise UserError(
                f"onnx_genai's builder would take {name} for the head: both have {config.vocab_size} outputs"
            )
    for name, width in blocks.short_rows(model, BLOCK).items():
        raise UserError(f"{name} has rows of {width} weights; onnx_genai needs multiples of {BLOCK}")


def build(source: Path, folder: Path, precision: str) -> None:
    from onnxruntime_genai.models import builder

    place = {"model_name": None, "input_path": str(source), "output_dir": str(folder), "precision": precision}
    place |= {"execution_provider": "cpu", "cache_dir": str(source)}
    options = builder.parse_extra_options(**place, extra_options=[f"int4_block_size={BLOCK}", "hf_token=false"])
    builder.create_model(**place, **options)
