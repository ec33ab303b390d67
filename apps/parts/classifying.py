"""A model that has learnt to classify, asked about texts."""

from collections.abc import Sequence
from typing import Protocol

from stages.lib.frame.errors import UserError
from stages.lib.runtimes import labels
from stages.lib.runtimes.base import Runtime
from stages.lib.text.chat import Message
from stages.lib.text.labels import Task


class Opened(Protocol):
    @property
    def context(self) -> int | None:
        """Tokens that it can read and write in all; None: any number."""
        ...

    @property
    def runtime(self) -> Runtime: ...

    def count(self, messages: list[Message]) -> int: ...


def shares(model: Opened, task: Task, texts: Sequence[str], name: str) -> list[dict[str, float]]:
    """Of each text the probability of every label."""
    for number, text in enumerate(texts, 1):
        count = model.count([{"role": "user", "content": task.prompt(text)}])
        if model.context is not None and count > model.context:
            raise UserError(f"text {number} is {count} tokens long; {name} reads {model.context}")
    shares_NL = labels.probabilities(model.runtime, task, texts)
    return [dict(zip(task.labels, map(float, row), strict=True)) for row in shares_NL]
