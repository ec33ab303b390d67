"""A Hugging Face folder, run by transformers; a LoRA adapter is added into the base it names.

Shapes: T = tokens, N = sequences, V = vocabulary.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from stages.lib.nets import decoding
from stages.lib.runtimes.base import Ids, parameters
from stages.lib.store import adapters, models


class Transformers:
    BATCH = 64  # sequences

    def __init__(self, folder: Path, dtype: str = "float32"):
        self.folder = folder
        adapter = (folder / adapters.CONFIG).is_file()
        self.model: Any = adapters.load(folder).merge_and_unload() if adapter else models.load(folder, dtype)
        self.tokenizer = models.load_tokenizer(folder)

    def size(self) -> tuple[int, int]:
        return parameters(self.folder), sum(tensor_bytes(file) for file in self.folder.glob("*.safetensors"))

    def logits(self, ids: Ids) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids], device=self.model.device)).logits[0].float().cpu().numpy()

    def generate(
        self,
        prompts: list[Ids],
        max_new_tokens: int,
        stops: Collection[int] = (),
        temperature: float = 0,
        seed: int = 0,
    ) -> list[Ids]:
        import torch

        answers: dict[int, Ids] = {}
        shortest_first = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding in a batch
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), self.BATCH):
                indices = shortest_first[start : start + self.BATCH]
                ids_NT, mask_NT = pad_left([prompts[i] for i in indices])
                out_NT = decoding.decode(self.model, ids_NT, mask_NT, max_new_tokens, stops, temperature, pad=0)
                for i, row in zip(indices, out_NT.tolist(), strict=True):
                    answers[i] = decoding.until(row, stops)
        return [answers[i] for i in range(len(prompts))]


def pad_left(prompts: list[Ids]) -> tuple[Any, Any]:
    """Token ids and attention mask, both (N, T); what is masked may be any token."""
    import torch

    width = max(map(len, prompts))
    ids_NT = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    return ids_NT, torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])


def tensor_bytes(file: Path) -> int:
    """A safetensors file less its header, whose length its first 8 bytes hold."""
    with file.open("rb") as stream:
        return file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
