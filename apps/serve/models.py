"""The models that can be asked for, of which one is in memory."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from apps.parts import catalog
from apps.parts.llama import Llama
from stages.lib.frame.errors import UserError
from stages.lib.runtimes import labels
from stages.lib.runtimes.base import Runtime
from stages.lib.runtimes.open import open_runtime
from stages.lib.text.labels import Task


class Loaded:
    def __init__(self, name: str, file: Path):
        self.name, self.file, self.llama = name, file, Llama(file)

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Of each text the probability of every label."""
        task = self.task
        if task is None:
            raise UserError(f"{self.name} is no classifier, it writes text: ask it at /v1/chat/completions")
        for number, text in enumerate(texts, 1):
            count = self.llama.count([{"role": "user", "content": task.prompt(text)}])
            if count > self.llama.context:
                raise UserError(f"text {number} is {count} tokens long; {self.name} reads {self.llama.context}")
        shares_NL = labels.probabilities(self.runtime, task, texts)
        return [dict(zip(task.labels, map(float, row), strict=True)) for row in shares_NL]

    @cached_property
    def task(self) -> Task | None:
        return labels.of(self.file)

    @cached_property
    def runtime(self) -> Runtime:
        if self.file.name != labels.WEIGHTS:
            raise UserError(f"{self.file} can't classify alone: name the folder that it was exported into")
        return open_runtime(self.file.parent)


class Models:
    def __init__(self, names: list[str]):
        """The first answers where a request names none; no others are ever opened."""
        self.names = list(dict.fromkeys(names))
        self.loaded: Loaded | None = None

    def load(self, name: str) -> Loaded:
        """The model of that name, in place of the one before, for which there may be no memory beside it."""
        if self.loaded is None or self.loaded.name != name:
            place = catalog.find(name)
            if not place.is_file():
                raise UserError(f"{place} is no GGUF file, and only those are served: python -m apps.chat opens it")
            self.loaded = None
            self.loaded = Loaded(name, place)
        return self.loaded
