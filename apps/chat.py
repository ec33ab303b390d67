"""Talk to a model in the terminal: python -m apps.chat [--model MODEL]. Ctrl-C stops an answer, Ctrl-D ends.

MODEL is a GGUF file, a folder of any format that Orchard exports, a variant (export/gguf-q8_0) or an alias of the model
registry (orchard-gguf-q8_0@champion); without it, the one that ships. One that has learnt to classify says of each line
how likely its labels are. llama.cpp runs a GGUF from the one file, as it would at a user's; any other runs in the
runtime it ships for.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from apps.parts import catalog, classifying
from stages.lib.frame.errors import UserError, command
from stages.lib.runtimes import labels
from stages.lib.text.chat import Message
from stages.lib.text.labels import Task

STATE = "XDG_STATE_HOME"  # environment variable: where programs keep what is neither settings nor data
HELP = """\
/system TEXT   what the model is told before all questions (without TEXT: nothing)
/reset         forget the conversation; the system's words stay
/help          this
Ctrl-C stops an answer, Ctrl-D ends."""


class Opened(classifying.Opened, Protocol):
    def require_template(self) -> None: ...

    def write(
        self, messages: list[Message], temperature: float, max_tokens: int, say: Callable[[str], None]
    ) -> None: ...


class Talk(Protocol):
    def ask(self, question: str, say: Callable[[str], None]) -> None:
        """Hand the answer to `say` piece by piece."""
        ...

    def command(self, line: str) -> str:
        """Do what a line with a slash says; what there is to say to it."""
        ...


class Labelling:
    """With a model that has learnt to classify: each line is a text, and the answer how likely its labels are."""

    def __init__(self, model: classifying.Opened, task: Task, name: str):
        self.model, self.task, self.name = model, task, name

    def ask(self, question: str, say: Callable[[str], None]) -> None:
        [shares] = classifying.shares(self.model, self.task, [question], self.name)
        say(", ".join(f"{label} {share:.0%}" for label, share in sorted(shares.items(), key=lambda each: -each[1])))

    def command(self, line: str) -> str:
        return f"each line is a text, and the answer one of: {', '.join(self.task.labels)}. Ctrl-D ends."


class Conversation:
    """What was said, of which the model reads as much of the end as fits."""

    def __init__(self, model: Opened, temperature: float, max_tokens: int):
        self.model, self.temperature, self.max_tokens = model, temperature, max_tokens
        self.system: list[Message] = []
        self.turns: list[Message] = []  # from a question on; oldest first

    def ask(self, question: str, say: Callable[[str], None]) -> None:
        """One that is interrupted stays as far as it came."""
        turns = self.fitted([*self.turns, {"role": "user", "content": question}])
        pieces: list[str] = []

        def hear(piece: str) -> None:
            pieces.append(piece)
            say(piece)

        try:
            self.model.write([*self.system, *turns], self.temperature, self.max_tokens, hear)
        finally:
            if said := "".join(pieces):
                self.turns = [*turns, {"role": "assistant", "content": said}]

    def fitted(self, turns: list[Message]) -> list[Message]:
        """The turns without the oldest ones that, with room for an answer, are too much for the context."""
        if self.model.context is None:
            return turns
        room = self.model.context - min(self.max_tokens, self.model.context // 2)
        while (count := self.model.count([*self.system, *turns])) > room and len(turns) > 1:
            turns = turns[2:]
        if count >= self.model.context:
            raise UserError(
                f"these are {count} tokens; the context of the model has {self.model.context}: say it shorter"
            )
        return turns

    def command(self, line: str) -> str:
        name, _, text = line.partition(" ")
        if name == "/help":
            return HELP
        if name == "/system":
            self.system = [{"role": "system", "content": text.strip()}] if text.strip() else []
            return "the model is told so from now on" if self.system else "the model is told nothing beforehand"
        if name == "/reset":
            self.turns = []
            return "the conversation is forgotten"
        return f"there is no {name}; /help says what there is"


def main(*, model: str | None = None, temperature: float = 0.0, max_tokens: int = 1024) -> None:
    """Without --model it is the one that ships, by the gates in params.yaml."""
    with suppress(KeyboardInterrupt):
        place = catalog.find(model or catalog.shipped())
        opened, task = open_model(place), labels.of(place)
        talk(Labelling(opened, task, str(place)) if task else Conversation(opened, temperature, max_tokens))


def open_model(place: Path) -> Opened:
    if place.is_file():
        from apps.parts.llama import Llama

        model = Llama(place)
    else:
        from apps.parts.local import Local

        model = Local(place)
    model.require_template()
    return model


def talk(conversation: Talk) -> None:
    for line in lines():
        if line.startswith("/"):
            print(conversation.command(line))
            continue
        try:
            conversation.ask(line, lambda piece: print(piece, end="", flush=True))
            print()
        except KeyboardInterrupt:
            print()
            if not sys.stdin.isatty():
                return
        except UserError as error:
            print(error)


def lines() -> Iterator[str]:
    """Lines that say something, until Ctrl-D; Ctrl-C begins a new one."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    with remembered():
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                continue
            if line:
                yield line


@contextmanager
def remembered() -> Iterator[None]:
    """Lines can be edited, and the arrow keys bring back earlier ones, also of conversations before this one."""
    import readline

    history = Path(os.environ.get(STATE) or Path.home() / ".local" / "state") / "orchard" / "chat_history"
    with suppress(OSError):  # where nothing can be kept one can talk all the same
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.read_history_file(history)
    try:
        yield
    finally:
        with suppress(OSError):
            readline.write_history_file(history)


if __name__ == "__main__":
    command(main)
