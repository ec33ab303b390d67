"""Cleaning, duplicates and the split: the same for every source, and with little of it in memory.

Shards of records are cleaned each for itself, several at a time; their files outlive a kill. Then all are gone through
in order, and a record goes or stays by what is remembered, on disk, of those before it.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from stages.lib.frame import files, processes
from stages.lib.store import records
from stages.lib.store.records import Record
from stages.lib.text import chat, duplicates

LEARNT = ("text", "prompt", "solution", "chosen", "rejected")  # what a model may learn from a record
SHARD = 2_000_000  # characters to learn in a shard


def identity(record: Record) -> str:
    """What must not be in both splits: the text of a document, the prompt of anything else."""
    return record["text"] if "text" in record else chat.plain(record["prompt"])


def learnt(record: Record) -> list[str]:
    return [chat.plain(record.get(name, "")) for name in LEARNT]


def length(record: Record) -> int:
    """Characters of everything a model may learn from a record, clean or not."""
    return sum(map(len, learnt(record)))


def weight(record: Record) -> int:
    """The same in bytes of UTF-8."""
    return sum(len(text.encode()) for text in learnt(record))


def normalise(record: Record) -> Record:
    """Unicode NFC, no trailing blanks, no runs of empty lines, no halves of surrogate pairs (UTF-8 has none)."""
    if "text" not in record:
        return record
    text = unicodedata.normalize("NFC", whole(record["text"])).replace("\r\n", "\n")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return record | {"text": re.sub(r"\n{3,}", "\n\n", text).strip()}


def whole(text: str) -> str:
    """Without halves of surrogate pairs: UTF-8 has none."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def worth_keeping(record: Record, min_characters: int) -> bool:
    """A document of so many characters; of anything else nothing may be empty, nor its two replies the same."""
    if "text" in record:
        return len(record["text"]) >= max(1, min_characters)
    said = {key: chat.plain(record[key]).strip() for key in LEARNT if key in record}
    return all(said.values()) and ("chosen" not in said or said["chosen"] != said["rejected"])


def same(row: Record) -> int:
    """Equal for records that teach the same, blanks and case aside; what one likes and another does not is two."""
    verdict = [str(row["liked"])] if "liked" in row else []
    return duplicates.key("\0".join([*map(duplicates.plain, learnt(row)), *verdict]).encode())


def near(rows: list[Record]) -> list[list[int]]:
    """Numbers of each document, one of which it shares with any whose words are mostly its own; none of others."""
    documents = iter(duplicates.keys(row["text"] for row in rows if "text" in row))
    return [next(documents) if "text" in row else [] for row in rows]


def split(row: Record, held_out: float, seed: int) -> str:
    """The one that a record brings, else by a hash of its identity: no record can be in both, and order does not
    matter."""
    share = duplicates.number(f"{seed}\0{identity(row)}".encode()) / 2**64
    return row.get("split", "held_out" if share < held_out else "train")


class Candidate(NamedTuple):
    """A clean record, and what the stage must know of it."""

    same: int
    near: list[int]
    split: str
    family: str | None
    kind: str  # its family or source
    weight: int
    line: str  # in a file of records


def shards(rows: Iterable[Record], place: Path, least: int, held_out: float, seed: int, workers: int) -> Iterator[Path]:
    """Files of clean records, in order and as they come.

    `place` is a folder that only this run (these inputs, code and params) may use: what it holds was cleaned before a
    kill, and is not cleaned again.
    """
    pieces = enumerate(processes.pieces(rows, length, SHARD))
    work = partial(clean, least=least, held_out=held_out, seed=seed)
    return processes.in_order(work, ((place / f"{number:06}.txt", piece) for number, piece in pieces), workers)


def clean(piece: tuple[Path, list[Record]], least: int, held_out: float, seed: int) -> Path:
    """Write what `load` reads; returns the file."""
    file, rows = piece
    if not file.exists():
        kept = [row for row in map(normalise, rows) if worth_keeping(row, least)]
        with files.writing(file) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.write(f"{len(rows)}\n")
            for row, numbers in zip(kept, near(kept), strict=True):
                kind = str(row.get("family") or row["source"])
                about = [same(row), numbers, split(row, held_out, seed), row.get("family"), kind, weight(row)]
                line = records.line({name: row[name] for name in row if name != "split"})
                out.write(f"{json.dumps(about)}\t{line}")
    return file


def load(file: Path) -> tuple[int, list[Candidate]]:
    """(records read, those that are worth keeping)."""
    with file.open(encoding="utf-8") as lines:
        read = int(next(lines))
        pairs = (line.split("\t", 1) for line in lines)
        return read, [Candidate._make([*json.loads(about), line]) for about, line in pairs]


def distinct(files: Iterable[Path], copies: duplicates.Copies, seen: duplicates.Seen) -> Iterator[Candidate]:
    """The candidates that stay: of those that teach the same the first, where the last stands; of documents that are
    nearly the same the first. `copies` has counted them all."""
    for file in files:
        rows = [copies.last(row.same, row) for row in load(file)[1]]
        left = [Candidate._make(row) for row in rows if row]
        yield from compress(left, seen.new([row.near for row in left]))
