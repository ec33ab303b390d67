"""What of the data is new since a version of a model was made."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flows import drift
from flows.drift import Drift
from flows.versions import Artefacts
from stages.lib.store import records
from stages.lib.store.records import SPLITS, Record, Rows
from stages.lib.text import chat


@dataclass(frozen=True)
class News:
    """Of one folder of records. Rows with the same text are one, whatever their ids are."""

    old: list[Record]  # all that were there, new and gone ones too
    new: list[Record]
    gone: int

    def drift(self) -> Drift | None:
        """Whether the new rows are of another kind than the old ones; None where there are too few."""
        return drift.measure([*map(text, self.old)], [*map(text, self.new)])


def since(then: Artefacts, folder: Path) -> News:
    before = [row for split in SPLITS for row in rows(then, folder, split)]
    now = [row for split in SPLITS for row in Rows(folder, split)]
    had, has = set(map(text, before)), set(map(text, now))
    return News(before, [row for row in now if text(row) not in had], len(had - has))


def rows(then: Artefacts, folder: Path, split: str) -> Iterator[Record]:
    file = folder / f"{split}.jsonl"
    return (records.parse(file, number, line) for number, line in enumerate(then.lines(str(file)), 1))


def text(row: Record) -> str:
    """What there is to read in a record."""
    said = [row[key] for key in ("prompt", "text", "solution", "chosen", "rejected") if key in row]
    return "\n".join(map(chat.plain, said))


def learnt(then: Artefacts, folders: Iterable[Path]) -> set[str]:
    """Prompts that a model may have been trained on: then, or now from these folders."""
    before = (rows(then, folder, "train") for folder in map(Path, sorted(then.records())))
    now = (Rows(folder, "train") for folder in folders)
    return {chat.plain(row["prompt"]) for each in (*before, *now) for row in prompts(each)}


def prompts(those: Iterable[Record]) -> Iterator[Record]:
    """None of documents, without reading them all: records of one folder are of one kind."""
    for row in those:
        if "prompt" not in row:
            return
        yield row
