"""ONNX: one graph for onnxruntime and transformers.js, on servers and in browsers. github.com/onnx/onnx, 2017.

The graph takes the keys and values of earlier tokens and gives them back longer, so that a new token costs one
position. int8 and int4 round the weights of matrix products in blocks of 32 inputs with one 32-bit scale (9 and 5
bits/weight); embeddings and norms stay 32-bit floats, and so does a head that is the embedding. Cost: one trace of
the model, one pass over the weights. Names are as in Hugging Face's files: past_key_values.LAYER.key,
present.LAYER.key; the graph lies where transformers.js looks for one of its `dtype`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from stages.export import Export
from stages.export.parts import quiet, tracing
from stages.lib.frame.errors import UserError
from stages.lib.runtimes.onnx import Onnx

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLOCK = 32  # inputs that share one scale
BITS = {"int8": 8, "int4": 4}
NAMES = {"float32": "model", "int8": "model_quantized", "int4": "model_q4"}  # of transformers.js
LIMIT = 2**31  # bytes of one protobuf message


class ONNX(Export):
    FORMAT = "ONNX {type}"
    RUN = """\
    pipeline("text-generation", "this folder", { dtype: "fp32" })  // transformers.js; int8: "q8", int4: "q4"
    onnxruntime.InferenceSession("onnx/model.onnx")    # inputs: input_ids, attention_mask, position_ids, empty caches
"""

    method: Literal["onnx"]
    type: Literal["float32", "int8", "int4"]

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        check(model, self.type, self.model)
        with quiet.quiet():
            graph = bare(named(trace(model)))
            if self.type in BITS:
                graph = rounded(graph, BITS[self.type])
        (folder / "onnx").mkdir()
        (folder / "onnx" / f"{NAMES[self.type]}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)

    def open(self, folder: Path) -> Onnx:
        return Onnx(folder)


def check(model: Any, type: str, parent: str) -> None:
    """Refuse what would only fail after minutes of tracing."""
    tracing.require_cache(model, "ONNX", parent)
    if type in BITS:
        tracing.require_dense(model, "ONNX", type, "float32", parent)
    if (size := 4 * model.num_parameters()) >= LIMIT:
        raise UserError(f"ONNX holds {LIMIT:,} bytes in a file, this model takes {size:,} in floats: use onnx_genai")


def trace(model: Any) -> Any:
    """The program of onnxscript."""
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    inputs, free = tracing.example(model)
    return OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True, dynamic_shapes=free))


def named(program: Any) -> Any:
    """The names that others look for, of values and of free lengths; the tracer numbers its own anew each time."""
    import onnx_ir

    graph = program.model.graph
    for value in [*graph.inputs, *graph.outputs]:
        if "past_key_values" in value.name:  # input.past_key_values.layers.0.keys
            side, *_, layer, kind = value.name.split(".")
            prefix, length = {"input": ("past_key_values", "past"), "output": ("present", "total")}[side]
            value.name = f"{prefix}.{layer}.{kind.removesuffix('s')}"
            value.shape = onnx_ir.Shape(["batch", value.shape[1], length, value.shape[3]])
        else:
            length = "total" if value.name == "attention_mask" else "sequence"
            value.shape = onnx_ir.Shape(["batch", length, *value.shape[2:]])
    return program.model_proto


def bare(graph: Any) -> Any:
    """Without the trace's notes: they name lines of code on the machine that wrote it."""
    inner = graph.graph
    del inner.value_info[:]
    for part in [graph, inner, *inner.node, *inner.initializer, *inner.input, *inner.output]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return graph


def rounded(graph: Any, bits: int) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer: Any = MatMulNBitsQuantizer(graph, bits=bits, block_size=BLOCK, is_symmetric=True)
    quantizer.process()
    return quantizer.model.model
