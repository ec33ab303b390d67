"""A folder with model.gguf, run by llama.cpp in this process, several sequences at a time.

It is reached through the C API of `ik_llama_cpp`: the one prebuilt package that promises the logits of every position,
and batches that are the same in every run (a server's depend on the clock). It lacks the ternary types, so those run in
stages/lib/runtimes/mainstream.py. Shapes: T = tokens, N = sequences, V = vocabulary.
"""

import ctypes
import os
import weakref
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.lib.frame.errors import UserError
from stages.lib.runtimes.base import Ids, choose
from stages.lib.store import models


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
            raise UserError(
                f"{self.file} is damaged: llama.cpp can't load it: run the stage that wrote it again"
            ) from None
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
        self,
        prompts: list[Ids],
        max_new_tokens: int,
        stops: Collection[int] = (),
        temperature: float = 0,
        seed: int = 0,
    ) -> list[Ids]:
        random = np.random.default_rng(seed)
        groups = [prompts[start : start + self.BATCH] for start in range(0, len(prompts), self.BATCH)]
        return [
            answer
            for group in groups
            for answer in self.answer(group, max_new_tokens, stops, lambda rows: choose(rows, temperature, random))
        ]

    def answer(
        self, prompts: list[Ids], max_new_tokens: int, stops: Collection[int], choose: Callable[[np.ndarray], Ids]
    ) -> list[Ids]:
        """All prompts at once: first what was asked, then one token of every unfinished answer at a time."""
        context = self.context(sum(map(len, prompts)) + len(prompts) * max_new_tokens)
        answers: list[Ids] = [[] for _ in prompts]
        steps = [Step(n, t, token, t == len(p) - 1) for n, p in enumerate(prompts) for t, token in enumerate(p)]
        for _ in range(max_new_tokens):
            newest = [step for step in steps if step.wanted]
            chosen = zip(newest, choose(self.decode(context, steps)), strict=True)
            steps = [
                Step(last.sequence, last.position + 1, token, True) for last, token in chosen if token not in stops
            ]
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
