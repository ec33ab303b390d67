"""One way to run any model artefact: llama.cpp (stages/lib/llama_cpp.py) for a folder with model.gguf, onnxruntime
(onnx.py) with model.onnx, OpenVINO (openvino.py) with openvino_model.xml, ExecuTorch (executorch.py) with model.pte;
transformers for any other. A LoRA adapter is added into the base it names.

What is compared, scored or asked for text runs in the runtime it ships for.
Shapes: T = tokens, N = sequences, V = vocabulary.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stages.lib import lora, models

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
        self, prompts: list[Ids], max_new_tokens: int, stop: int, temperature: float = 0, seed: int = 0
    ) -> list[Ids]:
        """What follows each prompt, without the stop token; greedy at temperature 0."""
        ...


def open_runtime(folder: Path) -> Runtime:
    if (folder / "model.gguf").is_file():
        from stages.lib import llama_cpp, mainstream

        return (mainstream.Mainstream if mainstream.needed(folder / "model.gguf") else llama_cpp.LlamaCpp)(folder)
    if (folder / "model.onnx").is_file():
        from stages.lib.onnx import Onnx

        return Onnx(folder)
    if (folder / "model.pte").is_file():
        from stages.lib.executorch import ExecuTorch

        return ExecuTorch(folder)
    if (folder / "openvino_model.xml").is_file():
        from stages.lib.openvino import OpenVINO

        return OpenVINO(folder)
    return Transformers(folder)


def parameters(folder: Path) -> int:
    """Of the dense shape that config.json describes: packed integers would be miscounted."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).num_parameters()


def file_bytes(folder: Path) -> int:
    """The weights file that ships, without tokenizer and notes (a GGUF holds its tokenizer)."""
    found = [file for file in sorted(folder.iterdir()) if file.suffix in WEIGHTS]
    if not found:
        raise SystemExit(f"{folder} is no model: it has no file that ends in {' or '.join(WEIGHTS)}")
    return sum(file.stat().st_size for file in found)


class Transformers:
    BATCH = 64  # sequences

    def __init__(self, folder: Path):
        self.folder = folder
        adapter = (folder / lora.CONFIG).is_file()
        self.model: Any = lora.load(folder).merge_and_unload() if adapter else models.load(folder)
        self.tokenizer = models.load_tokenizer(folder)

    def size(self) -> tuple[int, int]:
        return parameters(self.folder), sum(tensor_bytes(file) for file in self.folder.glob("*.safetensors"))

    def logits(self, ids: Ids) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([ids], device=self.model.device)).logits[0].float().cpu().numpy()

    def generate(
        self, prompts: list[Ids], max_new_tokens: int, stop: int, temperature: float = 0, seed: int = 0
    ) -> list[Ids]:
        import torch

        answers: dict[int, Ids] = {}
        shortest_first = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # little padding in a batch
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            for start in range(0, len(prompts), self.BATCH):
                indices = shortest_first[start : start + self.BATCH]
                ids_NT, mask_NT = pad_left([prompts[i] for i in indices])
                out_NT = self.model.generate(
                    ids_NT.to(self.model.device),
                    attention_mask=mask_NT.to(self.model.device),
                    max_new_tokens=max_new_tokens,
                    eos_token_id=stop,
                    pad_token_id=0,
                    **(sampling if temperature else {"do_sample": False}),
                )
                for i, row in zip(indices, out_NT[:, ids_NT.shape[1] :].tolist(), strict=True):
                    answers[i] = row[: row.index(stop)] if stop in row else row
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


def choose(logits_NV: np.ndarray, temperature: float, random: np.random.Generator) -> Ids:
    """The likeliest token, or one drawn from softmax(logits / temperature) by the Gumbel-max trick."""
    if temperature:
        logits_NV = logits_NV / temperature + random.gumbel(size=logits_NV.shape)
    return logits_NV.argmax(-1).tolist()
