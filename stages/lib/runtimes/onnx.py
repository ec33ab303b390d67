"""A folder with an ONNX graph, run by onnxruntime: a sequence at a time, its key-value cache handed from step to step.

Serves every graph with the inputs that Hugging Face's exporters write: input_ids, attention_mask, position_ids if it
asks for them, and a past key and value a layer. Shapes: T = new tokens, P = tokens in the cache, V = vocabulary.
"""

from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.runtimes.base import Ids, parameters
from stages.lib.runtimes.stepwise import Stepwise
from stages.lib.store import models

TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
SMALL = 32e6  # bytes; below, threads wait for each other longer than they work

Cache = dict[str, np.ndarray]  # past key or value -> (1, heads, P, head size)


class Onnx(Stepwise):
    def __init__(self, folder: Path):
        import onnxruntime
        from transformers import AutoConfig

        self.folder, self.file, self.tokenizer = folder, graphs(folder)[0], models.load_tokenizer(folder)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal only: what is wrong comes as an exception too
        options.intra_op_num_threads = 1 if sum(file.stat().st_size for file in weights(self.file)) < SMALL else 0
        try:
            self.session = onnxruntime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class for each way, with no base of their own
            raise UserError(f"{self.file} is damaged ({error}): run the stage that wrote it again") from error
        self.inputs = {value.name for value in self.session.get_inputs()}
        # a graph may leave the size of a head open
        heads = anatomy.heads(AutoConfig.from_pretrained(folder, trust_remote_code=False))

        def nothing(cache: Any) -> np.ndarray:
            count, size = (told if isinstance(told, int) else None for told in (cache.shape[1], cache.shape[3]))
            return np.zeros((1, count or heads.keys_values, 0, size or heads.size), TYPES[cache.type])

        caches = [each for each in self.session.get_inputs() if each.name.startswith("past_key_values")]
        self.empty: Cache = {cache.name: nothing(cache) for cache in caches}
        self.present = [name.replace("past_key_values", "present") for name in self.empty]

    def size(self) -> tuple[int, int]:
        import onnx

        def stored(tensor: Any) -> int:
            return int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize

        graph = onnx.load(self.file, load_external_data=False).graph
        return parameters(self.folder), sum(map(stored, graph.initializer))

    def step(self, ids: Ids, memory: Cache) -> tuple[np.ndarray, Cache]:
        past = next(iter(memory.values())).shape[2]
        given = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, past + len(ids)), np.int64),
            "position_ids": np.arange(past, past + len(ids), dtype=np.int64)[None],
        }
        fed = {name: value for name, value in given.items() if name in self.inputs}
        outputs: Any = self.session.run(["logits", *self.present], fed | memory)
        return np.asarray(outputs[0][0], np.float32), dict(zip(memory, outputs[1:], strict=True))


def graphs(folder: Path) -> list[Path]:
    """Where Hugging Face's folders have them, or where onnxruntime-genai does."""
    return sorted([*folder.glob("onnx/*.onnx"), *folder.glob("model.onnx")])


def weights(graph: Path) -> list[Path]:
    """The graph, and the file its weights lie in when they are not inside it."""
    return sorted(graph.parent.glob(f"{graph.name}*"))
