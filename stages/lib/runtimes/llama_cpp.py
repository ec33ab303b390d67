"""A folder with model.gguf, run by llama.cpp in this process (stages/lib/runtimes/libllama.py), several sequences at a
time, in batches that are the same in every run (a server's depend on the clock). N = sequences, V = vocabulary.
"""

import os
import weakref
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.lib.frame.errors import UserError
from stages.lib.runtimes import libllama
from stages.lib.runtimes.base import Ids, choose
from stages.lib.store import models


class Step(NamedTuple):
    """One token of a llama.cpp batch."""

    sequence: int
    position: int
    token: int
    wanted: bool  # are the logits after it of interest?


class LlamaCpp:
    BATCH = 8  # sequences: each has a cache as long as the longest
    SMALL = 32e6  # bytes; below, threads wait for each other longer than they work, and for ever on busy cores

    def __init__(self, folder: Path):
        self.file, self.tokenizer = folder / "model.gguf", models.load_tokenizer(folder)
        try:
            self.model = libllama.Model(str(self.file))
        except RuntimeError:
            raise UserError(
                f"{self.file} is damaged: llama.cpp can't load it: run the stage that wrote it again"
            ) from None
        self.room = self.sequences = 0  # of the present context
        self.handles: list[Any] = [self.model]
        weakref.finalize(self, close, self.handles)  # their own __del__ comes too late when Python ends

    def size(self) -> tuple[int, int]:
        return self.model.size()

    def logits(self, ids: Ids) -> np.ndarray:
        context = self.context(len(ids), 1)
        return context.decode([Step(0, position, token, True) for position, token in enumerate(ids)])

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
        context = self.context(max(map(len, prompts)) + max_new_tokens, len(prompts))
        answers: list[Ids] = [[] for _ in prompts]
        steps = [Step(n, t, token, t == len(p) - 1) for n, p in enumerate(prompts) for t, token in enumerate(p)]
        for _ in range(max_new_tokens):
            newest = [step for step in steps if step.wanted]
            chosen = zip(newest, choose(context.decode(steps)), strict=True)
            steps = [
                Step(last.sequence, last.position + 1, token, True) for last, token in chosen if token not in stops
            ]
            for step in steps:
                answers[step.sequence].append(step.token)
            if not steps:
                break
        return answers

    def context(self, tokens: int, sequences: int) -> libllama.Context:
        """Empty caches for so many tokens each; the last ones serve again if they are long and many enough."""
        if tokens > self.room or sequences > self.sequences:
            close(self.handles, keep=1)
            threads = 1 if self.file.stat().st_size < self.SMALL else os.cpu_count() or 1
            self.handles.append(libllama.Context(self.model, tokens, sequences, threads))
            self.room, self.sequences = tokens, sequences
        self.handles[-1].clear()
        return self.handles[-1]


def close(handles: list[Any], keep: int = 0) -> None:
    """Free what llama.cpp holds, the context before its model."""
    while len(handles) > keep:
        handles.pop().close()
