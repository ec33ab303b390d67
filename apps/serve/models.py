"""The models that can be asked for, of which one is in memory."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from apps.parts import catalog, classifying
from apps.parts.llama import Llama
from stages.lib.frame.errors import UserError
from stages.lib.text.labels import Task


class Loaded:
    def __init__(self, name: str, file: Path):
        self.name, self.file, self.llama = name, file, Llama(file)

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Of each text the probability of every label."""
        task = self.task
        if task is None:
            raise UserError(f"{self.name} is no classifier, it writes text: ask it at /v1/chat/completions")
        return classifying.shares(self.llama, task, texts, self.name)

    @cached_property
    def task(self) -> Task | None:
        return classifying.task(self.file)


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
