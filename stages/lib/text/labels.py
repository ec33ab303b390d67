"""Classification as a language model does it: the likeliest first token of its answer, among those of the labels.

A record of such a task names its `labels` and the `template` that its prompt was made of; so does the config of a model
that has learnt nothing else, under `classify`, and whoever opens it can ask it about further texts. Shapes: N texts,
L labels.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.lib.frame.errors import UserError
from stages.lib.text import chat

if TYPE_CHECKING:
    from stages.lib.store.records import Record

TEXT = "{text}"  # where a template has the text
CONFIG = "classify"  # what a model's config calls its task
GGUF = "orchard.classify"  # what a GGUF calls it, as JSON


class Task(NamedTuple):
    labels: list[str]
    template: str

    def prompt(self, text: str) -> str:
        return self.template.replace(TEXT, text)

    def text(self, prompt: str) -> str:
        """What such a prompt was made of."""
        before, _, behind = self.template.partition(TEXT)
        return prompt.removeprefix(before).removesuffix(behind)


def task(rows: "Iterable[Record]") -> Task | None:
    """The task that all of these records are of; none if they are of several, or of another kind."""
    found = {(tuple(row.get("labels", ())), row.get("template")) for row in rows}
    labels, template = found.pop() if len(found) == 1 else ((), None)
    return Task(list(labels), template) if labels and template else None


def task_of(config: Any) -> Task | None:
    """What a model's config says that it has learnt."""
    known = getattr(config, CONFIG, None)
    return Task(**known) if known else None


def require(rows: "Iterable[Record]", place: object, instead: str) -> Task:
    """The task of records that have to be of one."""
    found = task(rows)
    if found is None:
        raise UserError(f"{place}: its records name no labels, or not all the same{instead}")
    return found


def keep(config: Any, rows: "Iterable[Record]") -> None:
    """Write into a model's config what it is taught by these records, and nothing if that is not one task."""
    if learnt := task(rows):
        setattr(config, CONFIG, learnt._asdict())
    elif hasattr(config, CONFIG):
        delattr(config, CONFIG)


def tokens(tokenizer: Any, labels: Sequence[str]) -> list[int]:
    """The token that each label's answer begins with, (L,); refused where two begin alike."""
    first = {label: begin(tokenizer, label) for label in labels}
    for number, label in enumerate(labels):
        if twin := next((other for other in labels[:number] if first[other] == first[label]), None):
            alike = tokenizer.decode([first[label]])
            raise UserError(
                f"labels {twin!r} and {label!r} both begin with the token {alike!r}, so no first token tells them "
                "apart: give them other `names`"
            )
    return list(first.values())


def begin(tokenizer: Any, label: str) -> int:
    coded = chat.chat(tokenizer, chat.PROBE, label)
    return coded.ids[coded.begin]
