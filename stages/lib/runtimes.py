"""One way to run any model artefact: llama.cpp for a folder with model.gguf, transformers for any other.

What is compared, scored or asked for text runs in the runtime it ships for. llama.cpp is reached through the C API of
`ik_llama_cpp`: the one prebuilt package that gives the logits of every position, and batches that are the same in
every run (a server's depend on the clock). Shapes: T = tokens, N = sequences, V = vocabulary.
"""

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stages.lib import models

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
    return LlamaCpp(folder) if (folder / "model.gguf").is_file() else Transformers(folder)


class Transformers:
    BATCH = 64  # sequences

    def __init__(self, folder: Path):
        self.folder, self.tokenizer = folder, models.load_tokenizer(folder)
        self.model: Any = models.load(folder)

    def size(self) -> tuple[int, int]:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.folder)
        with torch.device("meta"):  # the dense shape: packed integers would be miscounted
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        return parameters, sum(tensor_bytes(file) for file in self.folder.glob("*.safetensors"))

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
                ids_NT, mask_NT = pad_left([prompts[i] for i in indices], stop)
                out_NT = self.model.generate(
                    ids_NT.to(self.model.device),
                    attention_mask=mask_NT.to(self.model.device),
                    max_new_tokens=max_new_tokens,
                    eos_token_id=stop,
                    pad_token_id=stop,
                    **(sampling if temperature else {"do_sample": False}),
                )
                for i, row in zip(indices, out_NT[:, ids_NT.shape[1] :].tolist(), strict=True):
                    answers[i] = row[: row.index(stop)] if stop in row else row
        return [answers[i] for i in range(len(prompts))]


def pad_left(prompts: list[Ids], filler: int) -> tuple[Any, Any]:
    """Token ids and attention mask, both (N, T)."""
    import torch

    width = max(map(len, prompts))
    ids_NT = torch.tensor([[filler] * (width - len(p)) + p for p in prompts])
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

    def __init__(self, folder: Path):
        from ik_llama_cpp._internals import IkModel

        silence()
        self.file, self.tokenizer = folder / "model.gguf", models.load_tokenizer(folder)
        try:
            self.model = IkModel(str(self.file))
        except RuntimeError:
            raise SystemExit(f"{self.file} is damaged: llama.cpp can't load it; delete it and run again") from None
        weakref.finalize(self, self.model.close)  # its own __del__ comes too late when Python ends

    def size(self) -> tuple[int, int]:
        import gguf

        tensors = gguf.GGUFReader(self.file).tensors
        return sum(int(t.n_elements) for t in tensors), sum(int(t.n_bytes) for t in tensors)

    def logits(self, ids: Ids) -> np.ndarray:
        with self.context(len(ids), 1) as context:
            return self.decode(context, [Step(0, position, token, True) for position, token in enumerate(ids)])

    def generate(
        self, prompts: list[Ids], max_new_tokens: int, stop: int, temperature: float = 0, seed: int = 0
    ) -> list[Ids]:
        random = np.random.default_rng(seed)
        answers: list[Ids] = []
        for start in range(0, len(prompts), self.BATCH):
            group = prompts[start : start + self.BATCH]
            with self.context(sum(map(len, group)) + len(group) * max_new_tokens, len(group)) as context:
                answers += self.answer(context, group, max_new_tokens, stop, temperature, random)
        return answers

    def answer(
        self, context: Any, prompts: list[Ids], max_new_tokens: int, stop: int, temperature: float, random: Any
    ) -> list[Ids]:
        answers: list[Ids] = [[] for _ in prompts]
        steps = [Step(n, t, token, t == len(p) - 1) for n, p in enumerate(prompts) for t, token in enumerate(p)]
        for _ in range(max_new_tokens):
            tokens = choose(self.decode(context, steps), temperature, random)
            wanted = [step for step in steps if step.wanted]
            steps = []
            for (sequence, position, *_), token in zip(wanted, tokens, strict=True):
                if token != stop:
                    answers[sequence].append(token)
                    steps.append(Step(sequence, position + 1, token, True))
            if not steps:
                break
        return answers

    @contextmanager
    def context(self, tokens: int, sequences: int) -> Iterator[Any]:
        from ik_llama_cpp._internals import IkContext

        threads = os.cpu_count() or 1
        # flash attention of this build aborts the process on CPUs without AVX-VNNI
        context = IkContext(self.model, n_ctx=tokens, n_threads=threads, n_seq_max=sequences, flash_attn=False)
        try:
            yield context
        finally:
            context.close()

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


@cache
def silence() -> Any:
    """llama.cpp reports every tensor on stderr; what it calls instead must live as long as the process."""
    from ik_llama_cpp import _ctypes_api as llama

    drop = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama._lib.llama_log_set(drop, None)
    return drop
