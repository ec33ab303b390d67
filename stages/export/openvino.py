"""OpenVINO: a graph for Intel's processors, graphics and NPUs, with its key-value cache inside.
github.com/openvinotoolkit/openvino, 2018.

As openvino-genai and optimum-intel expect it: input_ids, attention_mask, position_ids, and beam_idx, the row of the
last call that each row goes on from. float16 rounds every weight to 16 bits; int8 and int4 round the weights of matrix
products too (nncf, symmetric: one scale an output, or a block of 32 inputs), and with int4 the head and the embedding
keep 8 bits. Cost: one trace of the model, one pass over the weights.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from stages.export import Export
from stages.export.parts import blocks, quiet, tracing
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.runtimes import openvino as runtime

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BLOCK = 32  # inputs that share one scale


class OpenVINO(Export):
    FORMAT = "OpenVINO {type}"
    RUN = """\
    openvino.Core().compile_model("openvino_model.xml")    # or openvino_genai, with its own file of the tokenizer
"""

    method: Literal["openvino"]
    type: Literal["float16", "int8", "int4"]

    def write(self, model: Any, tokenizer: "PreTrainedTokenizerFast", folder: Path, rows: Tensor) -> None:
        check(model, self.type, self.model)
        openvino = runtime.library()
        with quiet.quiet():
            graph = remembering(named(trace(model), model.config), model.config)
            if self.type != "float16":
                graph = rounded(graph, self.type)
            openvino.save_model(numbered(graph), folder / runtime.FILE, compress_to_fp16=True)
        tokenizer.save_pretrained(folder)
        model.config.save_pretrained(folder)

    def open(self, folder: Path) -> runtime.OpenVINO:
        return runtime.OpenVINO(folder)


def check(model: Any, type: str, parent: str) -> None:
    """Refuse what would only fail after minutes of tracing."""
    tracing.require_cache(model, "OpenVINO", parent)
    if type != "float16":
        tracing.require_dense(model, "OpenVINO", type, "float16", parent)
    if anatomy.latent(model):
        raise UserError(f"OpenVINO export knows keys as wide as values, not {model.config.model_type}: take ONNX")
    for name, width in blocks.short_rows(model, BLOCK).items() if type == "int4" else ():
        raise UserError(f"{name} has rows of {width} weights; int4 needs multiples of {BLOCK}: take int8")


def trace(model: Any) -> Any:
    from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter

    inputs, free = tracing.example(model)
    program = DynamoExporter().export(model, inputs, config=DynamoConfig(dynamic=True, dynamic_shapes=free))
    return runtime.library().convert_model(program)


def caches(config: Any) -> list[str]:
    return [f"{layer}.{kind}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]


def named(graph: Any, config: Any) -> Any:
    """The names that others look for; the caches come in the order of the layers."""
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{cache}" for cache in caches(config))]
    outputs = ["logits", *(f"present.{cache}" for cache in caches(config))]
    for values, names in ((graph.inputs, inputs), (graph.outputs, outputs)):
        for value, name in zip(values, names, strict=True):
            value.set_names({name})
    return graph


def remembering(graph: Any, config: Any) -> Any:
    """The caches as state of the graph; in each call a row goes on from row beam_idx of the one before."""
    from openvino import PartialShape
    from openvino import opset13 as ops
    from openvino.passes import MakeStateful, Manager

    heads = anatomy.heads(config)
    beam = ops.parameter([-1], np.int32, name="beam_idx")
    beam.output(0).set_names({"beam_idx"})
    graph.add_parameters([beam])
    for name in caches(config):
        past = graph.input(f"past_key_values.{name}")
        past.node.set_partial_shape(PartialShape([-1, heads.keys_values, -1, heads.size]))
        users = past.get_target_inputs()
        chosen = ops.gather(past.node, beam, ops.constant(0))
        for user in users:
            user.replace_source_output(chosen.output(0))
    graph.validate_nodes_and_infer_types()
    passes = Manager()
    passes.register_pass(MakeStateful({f"past_key_values.{name}": f"present.{name}" for name in caches(config)}))
    passes.run_passes(graph)
    return emptied(graph, heads)


def emptied(graph: Any, heads: anatomy.Heads) -> Any:
    """At first a state has no tokens, in as many rows as are asked for."""
    from openvino import opset13 as ops

    rows = ops.gather(ops.shape_of(graph.input("input_ids").node, "i64"), ops.constant([0]), ops.constant(0))
    rest = ops.constant(np.array([heads.keys_values, 0, heads.size]))
    nothing = ops.broadcast(ops.constant(np.float32(0)), ops.concat([rows, rest], 0))
    for node in graph.get_ops():
        if node.get_type_name() == "ReadValue":
            node.set_arguments([nothing.output(0)])
    graph.validate_nodes_and_infer_types()
    return graph


def rounded(graph: Any, type: str) -> Any:
    import nncf

    if type == "int8":
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
    four, eight = nncf.CompressWeightsMode.INT4_SYM, nncf.BackupMode.INT8_SYM
    return nncf.compress_weights(graph, mode=four, group_size=BLOCK, backup_mode=eight)


def numbered(graph: Any) -> Any:
    """Graphs and nodes are counted through the whole process; here they are counted anew."""
    graph.set_friendly_name("model")
    for number, node in enumerate(graph.get_ordered_ops()):
        if node.get_type_name() != "Parameter":
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    return graph
