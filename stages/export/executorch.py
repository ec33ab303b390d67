"""ExecuTorch: a program for phones and small boards, by its XNNPACK backend. github.com/pytorch/executorch, 2023.

The program takes the keys and values of earlier tokens, two tensors a layer, and gives them back longer, as the graph
of `onnx` does; one sequence at a time. Every weight in 16-bit floats; a head that is the embedding is stored twice,
once packed for XNNPACK. Its memory is planned for the model's whole context. Cost: one trace of the model and half a
minute of lowering.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stages.export import Export
from stages.export.parts import quiet, tracing
from stages.lib.frame.errors import UserError
from stages.lib.runtimes import executorch as runtime

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class ExecuTorch(Export):
    FORMAT = "ExecuTorch, 16-bit floats"
    RUN = """\
    executorch.runtime.Runtime.get().load_program("model.pte")    # method forward: ids, mask, positions, caches
"""

    method: Literal["executorch"]

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        tracing.require_cache(model, "ExecuTorch", self.model, windows=False)
        if not find_spec("executorch"):
            raise UserError(f"export of {self.model} by executorch needs the extra: pip install executorch==1.3.1")
        with quiet.quiet():
            program = lower(model.half())
        (folder / "model.pte").write_bytes(program.buffer)
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)

    def open(self, folder: Path) -> runtime.ExecuTorch:
        return runtime.ExecuTorch(folder)


def lower(model: Any) -> Any:
    from transformers.exporters.exporter_executorch import ExecutorchConfig, ExecutorchExporter

    inputs, _ = tracing.example(model, rows=1)
    longest, free = model.config.max_position_embeddings, torch.export.Dim.AUTO
    new, past, total = free(min=1, max=longest), free(min=0, max=longest), free(min=1, max=2 * longest)
    lengths = {"input_ids": {1: new}, "position_ids": {1: new}, "attention_mask": {1: total}}
    lengths |= {"past_key_values": [{2: past}] * 2 * model.config.num_hidden_layers}
    config = ExecutorchConfig(backend="xnnpack", dynamic=True, dynamic_shapes=lengths)
    return ExecutorchExporter().export(model, inputs, config=config)
