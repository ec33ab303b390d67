"""Cleaning, duplicates and the split: the same for every source."""

import hashlib
import re
import unicodedata

from stages.lib.records import Record

SHINGLE = 5  # words; the unit in which two documents are compared
SIMILAR = 0.7  # Jaccard similarity of shingles from which on two documents count as one
MIN_CHARACTERS = 200  # shorter documents teach little and upset duplicate detection


def identity(record: Record) -> str:
    """What makes two records the same: the text of a document, the prompt of anything else."""
    return record["text"] if "text" in record else record["prompt"]


def weight(record: Record) -> int:
    """UTF-8 bytes of everything a model may learn from a record."""
    return sum(len(record.get(key, "").encode()) for key in ("text", "prompt", "solution", "chosen", "rejected"))


def normalise(record: Record) -> Record:
    """Unicode NFC, no trailing blanks, no runs of empty lines."""
    if "text" not in record:
        return record
    text = unicodedata.normalize("NFC", record["text"]).replace("\r\n", "\n")
    text = re.sub(r"[ \t]+\n", "\n", text)
    return record | {"text": re.sub(r"\n{3,}", "\n\n", text).strip()}


def worth_keeping(record: Record) -> bool:
    return "text" not in record or len(record["text"]) >= MIN_CHARACTERS


def without_duplicates(rows: list[Record]) -> list[Record]:
    """The first of each set of equal records, blanks and case aside."""
    return list({" ".join(identity(row).casefold().split()): row for row in reversed(rows)}.values())[::-1]


def without_near_duplicates(rows: list[Record]) -> list[Record]:
    """Drop documents whose shingles are mostly another's. MinHash LSH: Broder 1997, doi:10.1109/SEQUEN.1997.666900."""
    from datasketch import MinHash, MinHashLSH

    index, kept = MinHashLSH(threshold=SIMILAR, num_perm=128), []
    for number, row in enumerate(rows):
        if "text" in row:
            sketch = MinHash(num_perm=128, seed=1)
            sketch.update_batch(shingles(row["text"]))
            if index.query(sketch):
                continue
            index.insert(str(number), sketch)
        kept.append(row)
    return kept


def shingles(text: str) -> list[bytes]:
    """Runs of five words; of a long document a sample chosen by hash, which leaves the similarity unbiased."""
    words = re.findall(r"\w+", text.casefold())
    runs = {" ".join(words[i : i + SHINGLE]).encode() for i in range(max(1, len(words) - SHINGLE + 1))}
    every = max(1, len(runs) // 2000)
    return sorted(run for run in runs if every == 1 or number(run) % every == 0)


def split(rows: list[Record], held_out: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, held out), by a hash of each record's identity: no record can be in both, and order does not matter."""
    train: list[Record] = []
    held: list[Record] = []
    for row in rows:
        by_hash = "held_out" if number(f"{seed}\0{identity(row)}".encode()) / 2**64 < held_out else "train"
        side = row.get("split", by_hash)
        (held if side == "held_out" else train).append({key: row[key] for key in row if key != "split"})
    return train, held


def number(text: bytes) -> int:
    """A 64-bit hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
