"""One way to run any model artefact: llama.cpp for a folder with model.gguf; onnxruntime (stages/lib/onnx.py) for one
with model.onnx, OpenVINO (openvino.py) with openvino_model.xml, ExecuTorch (executorch.py) with model.pte; transformers
for any other. A LoRA adapter is added into the base it names.

What is compared, scored or asked for text runs in the runtime it ships for. llama.cpp is reached through the C API of
`ik_llama_cpp`: the one prebuilt package that promises the logits of every position, and batches that are the same in
every run (a server's depend on the clock). It lacks the ternary types, so those run in stages/lib/mainstream.py.
Shapes: T = tokens, N = sequences, V = vocabulary.
"""

import ctypes
import os
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stages.lib import lora, models

Ids = list[int]


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
        from stages.lib import mainstream

        return (mainstream.Mainstream if mainstream.needed(folder / "model.gguf") else LlamaCpp)(folder)
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


class Step(NamedTuple):
    """One token of a llama.cpp batch."""

    sequence: int
    position: int
    token: int
    wanted: bool  # are the logits after it of interest?


class LlamaCpp:
    BATCH = 8  # sequences: all share one cache, and every token looks past the others' cells
    SMALL = 32e6  # bytes; below, threads wait for each other longer than they work, and for ever on busy cores

    def __init__(self, folder: Path):
        silence()
        self.file, self.tokenizer = folder / "model.gguf", models.load_tokenizer(folder)
        try:
            self.model = self.open_model()
        except RuntimeError:
            raise SystemExit(f"{self.file} is damaged: llama.cpp can't load it; delete it and run again") from None
        self.room = 0  # tokens that fit into the present context
        self.handles: list[Any] = [self.model]
        weakref.finalize(self, close, self.handles)  # their own __del__ comes too late when Python ends

    def open_model(self) -> Any:
        from ik_llama_cpp._internals import IkModel

        return IkModel(str(self.file))

    def open_context(self, tokens: int, threads: int) -> Any:
        from ik_llama_cpp._internals import IkContext

        # flash attention of this build aborts the process on CPUs without AVX-VNNI
        return IkContext(self.model, n_ctx=tokens, n_seq_max=self.BATCH, n_threads=threads, flash_attn=False)

    def size(self) -> tuple[int, int]:
        import gguf

        tensors = gguf.GGUFReader(self.file).tensors
        return sum(int(t.n_elements) for t in tensors), sum(int(t.n_bytes) for t in tensors)

    def logits(self, ids: Ids) -> np.ndarray:
        context = self.context(len(ids))
        return self.decode(context, [Step(0, position, token, True) for position, token in enumerate(ids)])

    def generate(
        self, prompts: list[Ids], max_new_tokens: int, stop: int, temperature: float = 0, seed: int = 0
    ) -> list[Ids]:
        random = np.random.default_rng(seed)
        groups = [prompts[start : start + self.BATCH] for start in range(0, len(prompts), self.BATCH)]
        return [
            answer
            for group in groups
            for answer in self.answer(group, max_new_tokens, stop, lambda rows: choose(rows, temperature, random))
        ]

    def answer(
        self, prompts: list[Ids], max_new_tokens: int, stop: int, choose: Callable[[np.ndarray], Ids]
    ) -> list[Ids]:
        """All prompts at once: first what was asked, then one token of every unfinished answer at a time."""
        context = self.context(sum(map(len, prompts)) + len(prompts) * max_new_tokens)
        answers: list[Ids] = [[] for _ in prompts]
        steps = [Step(n, t, token, t == len(p) - 1) for n, p in enumerate(prompts) for t, token in enumerate(p)]
        for _ in range(max_new_tokens):
            asked = [step for step in steps if step.wanted]
            chosen = zip(asked, choose(self.decode(context, steps)), strict=True)
            steps = [Step(last.sequence, last.position + 1, token, True) for last, token in chosen if token != stop]
            for step in steps:
                answers[step.sequence].append(step.token)
            if not steps:
                break
        return answers

    def context(self, tokens: int) -> Any:
        """An empty cache for so many tokens; the last one serves again if it is large enough."""
        if tokens > self.room:
            close(self.handles, keep=1)
            threads = 1 if self.file.stat().st_size < self.SMALL else os.cpu_count() or 1
            self.handles.append(self.open_context(tokens, threads))
            self.room = tokens
        self.handles[-1].kv_cache_clear()
        return self.handles[-1]

    def decode(self, context: Any, steps: list[Step]) -> np.ndarray:
        """Logits after every wanted token, (N, V)."""
        from ik_llama_cpp import _ctypes_api as llama

        batch = llama.llama_batch_init(len(steps), 0, 1)
        try:
            batch.n_tokens = len(steps)
            for i, (sequence, position, token, wanted) in enumerate(steps):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if code := context.decode(batch):
                raise RuntimeError(f"llama_decode returned {code} for {self.file}")
            wanted = [i for i, step in enumerate(steps) if step.wanted]
            rows = context.get_logits(wanted[0])  # the wanted rows lie one after the other
            return np.ctypeslib.as_array(rows, (len(wanted), self.model.n_vocab)).copy()
        finally:
            llama.llama_batch_free(batch)


def choose(logits_NV: np.ndarray, temperature: float, random: np.random.Generator) -> Ids:
    """The likeliest token, or one drawn from softmax(logits / temperature) by the Gumbel-max trick."""
    if temperature:
        logits_NV = logits_NV / temperature + random.gumbel(size=logits_NV.shape)
    return logits_NV.argmax(-1).tolist()


def close(handles: list[Any], keep: int = 0) -> None:
    """Free what llama.cpp holds, the context before its model."""
    while len(handles) > keep:
        handles.pop().close()


@cache
def silence() -> Any:
    """llama.cpp reports every tensor on stderr; what it calls instead must live as long as the process."""
    from ik_llama_cpp import _ctypes_api as llama

    drop = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama._lib.llama_log_set(drop, None)
    return drop
