"""Record artefacts: a folder with `train.jsonl` and `held_out.jsonl`, one JSON object a line.

Documents    {"id", "source", "text"}
Problems     {"id", "family", "prompt", "answer", "solution", "entry"}
Chats        {"id", "family", "prompt", "solution"}
Labelled     {"id", "family", "prompt", "labels", "template"}, and "solution", the label, where it is known
Extracts     {"id", "family", "prompt", "solution", "scorer"}: the solution is a JSON object
Pairs        {"id", "family", "prompt", "chosen", "rejected"}
Unpaired     {"id", "family", "prompt", "solution", "liked"}: a reply, and whether it was liked
Traces       {"id", "family", "prompt", "answer", "solution", "entry", "teacher", "attempt"}

A prompt is a question, or the messages before the reply: [{"role", "content"}, ...]; with "learn": "last" what the
assistant says in them is not learnt. "scorer" says how answers to a record are scored: "number", "json", or "pattern",
whose regular expression is in "pattern"; without it see stages/lib/text/problems.py.
"""

import json
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from stages.lib.frame import files
from stages.lib.frame.errors import UserError

SPLITS = ("train", "held_out")

Record = dict[str, Any]


def save(folder: Path, **splits: Iterable[Record]) -> None:
    """Write each split as <name>.jsonl into an existing folder."""
    for name, rows in splits.items():
        with files.writing(folder / f"{name}.jsonl") as file, file.open("w", encoding="utf-8") as out:
            out.writelines(map(line, rows))


def line(row: Record) -> str:
    """A record as it stands in a file."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def load(folder: Path, split: str) -> list[Record]:
    return list(iter(Rows(folder, split)))  # of the rows themselves list would ask how many they are


class Rows:
    """The records of a split, read when they are looked at; in memory is only where each begins."""

    def __init__(self, folder: Path, split: str):
        self.path = folder / f"{split}.jsonl"
        if not self.path.is_file():
            raise UserError(f"{self.path} is missing")
        self.file = self.path.open("rb")

    @cached_property
    def starts(self) -> "array[int]":
        return array("q", accumulate(map(len, self.file), initial=0))[:-1]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, number: int) -> Record:
        self.file.seek(self.starts[number])
        return parse(self.path, number + 1, self.file.readline())

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield parse(self.path, number, line)


def parse(path: Path, number: int, line: str | bytes) -> Record:
    """The record in a line of a file."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}, is damaged: {error}") from None
