"""The models that can be asked for, of which one is in memory."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from apps.parts import catalog, classifying
from apps.parts.llama import Llama
from stages.lib.frame.errors import UserError
from stages.lib.runtimes import labels
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

    def chat(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A request for chat as this model can answer it. A classifier reads the last text alone, in its template if it
        is not yet, and says one of its labels (GBNF, llama.cpp's grammar): it has learnt how an answer begins and not
        where it ends."""
        last = asked["messages"][-1]
        if self.task is None or not isinstance(text := last.get("content"), str):
            return asked
        prompt = self.task.prompt(self.task.text(text))
        one_of = " | ".join(json.dumps(label, ensure_ascii=False) for label in self.task.labels)
        return asked | {"messages": [last | {"content": prompt}], "grammar": f'root ::= " "? ({one_of})'}

    @cached_property
    def task(self) -> Task | None:
        return labels.of(self.file)


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
