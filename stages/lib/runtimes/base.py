"""What every runtime can do, and what several of them share. Shapes: T = tokens, N = sequences, V = vocabulary."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Ids = list[int]
WEIGHTS = (".gguf", ".safetensors", ".onnx", ".data", ".bin", ".pte")  # data, bin: beside their graph


class Runtime(Protocol):
    tokenizer: Any  # of transformers, also for a GGUF: tests hold it equal to the one inside the file

    def size(self) -> tuple[int, int]:
        """Parameters, and the bytes their tensors take in the file (scales and zero points counted)."""
        ...

    def logits(self, ids: Ids) -> np.ndarray:
        """Of every position, (T, V) float32."""
        ...

    def generate(
        self,
        prompts: list[Ids],
        max_new_tokens: int,
        stops: Collection[int] = (),
        temperature: float = 0,
        seed: int = 0,
    ) -> list[Ids]:
        """What follows each prompt, up to a token of `stops` and without it; greedy at temperature 0."""
        ...


def logits(runtime: Runtime) -> "Callable[[Tensor], Tensor]":
    """The runtime as a function ids (1, T) -> logits (1, T, V), as `models.logits` makes one of a model."""
    import torch

    return lambda ids_1T: torch.from_numpy(runtime.logits(ids_1T[0].tolist()))[None]


def parameters(folder: Path) -> int:
    """Of the dense shape that config.json describes: packed integers would be miscounted."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder, trust_remote_code=False)
        ).num_parameters()


def file_bytes(folder: Path) -> int:
    """The weights file that ships, without what lies beside it (a GGUF holds its tokenizer)."""
    found = [file for file in sorted([*folder.iterdir(), *folder.glob("onnx/*")]) if file.suffix in WEIGHTS]
    if not found:
        raise UserError(f"{folder} is no model: it has no file that ends in {' or '.join(WEIGHTS)}")
    return sum(file.stat().st_size for file in found)


def choose(logits_NV: np.ndarray, temperature: float, random: np.random.Generator) -> Ids:
    """The likeliest token, or one drawn from softmax(logits / temperature) by the Gumbel-max trick."""
    if temperature:
        logits_NV = logits_NV / temperature + random.gumbel(size=logits_NV.shape)
    return logits_NV.argmax(-1).tolist()
