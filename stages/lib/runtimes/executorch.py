"""A folder with model.pte, run by ExecuTorch: one sequence at a time, its key-value cache handed from step to step.

Shapes: T = new tokens, V = vocabulary.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.runtimes.base import Ids, parameters
from stages.lib.runtimes.stepwise import Stepwise
from stages.lib.store import models


class ExecuTorch(Stepwise):
    def __init__(self, folder: Path):
        from executorch.runtime import Runtime  # pyright: ignore[reportMissingImports]
        from transformers import AutoConfig

        self.folder, self.file, self.tokenizer = folder, folder / "model.pte", models.load_tokenizer(folder)
        try:
            self.program: Any = Runtime.get().load_program(self.file)
            self.method: Any = self.program.load_method("forward")
        except RuntimeError as error:
            raise UserError(f"{self.file} is damaged ({error}): run the stage that wrote it again") from error
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        heads = anatomy.heads(config)
        nothing = torch.zeros(1, heads.keys_values, 0, heads.size, dtype=torch.float16)
        self.empty = [nothing] * 2 * config.num_hidden_layers

    def size(self) -> tuple[int, int]:
        return parameters(self.folder), self.file.stat().st_size

    def step(self, ids: Ids, memory: list[Tensor]) -> tuple[np.ndarray, list[Tensor]]:
        past = memory[0].shape[2]
        total = past + len(ids)
        mask, places = torch.ones(1, total, dtype=torch.int64), torch.arange(past, total)[None]
        logits, *memory = self.method.execute([torch.tensor([ids]), mask, places, *memory])
        return logits[0].float().numpy(), [cache.clone() for cache in memory]  # its own serve the next call
