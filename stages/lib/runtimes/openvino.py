"""A folder with openvino_model.xml, run by OpenVINO on the CPU: one sequence at a time, the key-value cache inside.

Everything is computed in 32-bit floats, whatever the processor would rather do, so that the file is what is measured.
Shapes: T = new tokens, V = vocabulary.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.frame.errors import UserError
from stages.lib.runtimes.base import Ids, parameters
from stages.lib.runtimes.stepwise import Stepwise
from stages.lib.store import models

FILE = "openvino_model.xml"  # the graph; its weights lie beside it in .bin
SMALL = 32e6  # bytes; below, threads wait for each other longer than they work
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}


class OpenVINO(Stepwise):
    empty = 0  # tokens in the cache

    def __init__(self, folder: Path):
        self.folder, self.tokenizer = folder, models.load_tokenizer(folder)
        self.weights = folder / Path(FILE).with_suffix(".bin")
        threads = {"INFERENCE_NUM_THREADS": 1} if self.weights.stat().st_size < SMALL else {}
        try:
            model = library().Core().compile_model(folder / FILE, "CPU", EXACT | threads)
        except RuntimeError as error:
            raise UserError(f"{folder / FILE} is damaged ({error}): run the stage that wrote it again") from error
        self.request: Any = model.create_infer_request()

    def size(self) -> tuple[int, int]:
        return parameters(self.folder), self.weights.stat().st_size

    def step(self, ids: Ids, memory: int) -> tuple[np.ndarray, int]:
        if not memory:
            self.request.reset_state()
        total = memory + len(ids)
        given = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(memory, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return self.request.infer(given)["logits"][0].copy(), total


def library() -> Any:
    """OpenVINO without its telemetry, which it and nncf do without where it is not installed."""
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]
    import openvino

    return openvino
