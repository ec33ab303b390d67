"""Cleaning, duplicates and the split: the same for every source."""

import re
import unicodedata

from stages.lib.store.records import Record
from stages.lib.text import chat, duplicates

LEARNT = ("text", "prompt", "solution", "chosen", "rejected")  # what a model may learn from a record


def identity(record: Record) -> str:
    """What must not be in both splits: the text of a document, the prompt of anything else."""
    return record["text"] if "text" in record else chat.plain(record["prompt"])


def weight(record: Record) -> int:
    """UTF-8 bytes of everything a model may learn from a record."""
    return sum(len(chat.plain(record.get(key, "")).encode()) for key in LEARNT)


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
    learnt = {key: chat.plain(record[key]).strip() for key in LEARNT if key in record}
    return all(learnt.values()) and ("chosen" not in learnt or learnt["chosen"] != learnt["rejected"])


def without_duplicates(rows: list[Record]) -> list[Record]:
    """The first of each set of records that teach the same, blanks and case aside."""
    learnt = (tuple(duplicates.plain(chat.plain(row.get(key, ""))) for key in LEARNT) for row in reversed(rows))
    return list(dict(zip(learnt, reversed(rows), strict=True)).values())[::-1]


def without_near_duplicates(rows: list[Record]) -> list[Record]:
    """Drop documents whose words are mostly another's."""
    seen = duplicates.Seen()
    return [row for row in rows if "text" not in row or seen.add(row["text"])]


def split(rows: list[Record], held_out: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, held out), by a hash of each record's identity: no record can be in both, and order does not matter."""
    train: list[Record] = []
    held: list[Record] = []
    for row in rows:
        by_hash = "held_out" if duplicates.number(f"{seed}\0{identity(row)}".encode()) / 2**64 < held_out else "train"
        side = row.get("split", by_hash)
        (held if side == "held_out" else train).append({key: row[key] for key in row if key != "split"})
    return train, held
