"""Texts that say the same twice: exactly, blanks and case aside, or nearly, by MinHash over runs of words."""

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SHINGLE = 5  # words; the unit in which two texts are compared
LONG = 15  # letters of a word on average: of a script without blanks, or no words
SIMILAR = 0.7  # Jaccard similarity of shingles from which on two texts count as one
SKETCH = 128  # numbers that stand for a text
BANDS, ROWS = 14, 9  # of a sketch, two numbers left over: what datasketch's MinHashLSH takes for SIMILAR
CACHE = 64_000  # kB of the keys on disk that are held in memory


class Seen:
    """Texts so far, by their keys: in memory, or in a file, whose size is then the only thing that grows."""

    def __init__(self, texts: Iterable[str] = (), file: Path | None = None):
        self.store = database(file)
        self.store.execute("CREATE TABLE seen (key INTEGER PRIMARY KEY)")
        for text in texts:
            self.add(text)

    def add(self, text: str) -> bool:
        """Whether the text is new; only then is it remembered."""
        return self.new(keys([text]))[0]

    def new(self, batch: list[list[int]]) -> list[bool]:
        """Of each text's keys in turn: whether none is known; only then are they remembered."""
        every = json.dumps(sorted({key for each in batch for key in each}))  # in order: neighbours on disk
        found = self.store.execute("SELECT value FROM json_each(?) JOIN seen ON seen.key = value", [every])
        known, more, news = {key for (key,) in found}, set[int](), list[bool]()
        for each in batch:
            news.append(known.isdisjoint(each))
            if news[-1]:
                known.update(each)
                more.update(each)
        self.store.executemany("INSERT INTO seen VALUES (?)", ((key,) for key in sorted(more)))
        return news


class Copies:
    """Of values with the same key the first stays, in the place of the last; count all before asking for any."""

    def __init__(self, file: Path | None = None):
        self.store = database(file)
        self.store.execute("CREATE TABLE copies (key INTEGER PRIMARY KEY, left INTEGER, first TEXT)")

    def count(self, keys: Iterable[int]) -> None:
        more = "INSERT INTO copies VALUES (?, 1, NULL) ON CONFLICT DO UPDATE SET left = left + 1"
        self.store.executemany(more, ((key,) for key in keys))

    def last(self, key: int, value: Any) -> Any:
        """None while copies of this value, of JSON's types, are still to come; after that the first of them."""
        left, first = self.store.execute("SELECT left, first FROM copies WHERE key = ?", [key]).fetchone()
        if left == 1:
            return json.loads(first) if first else value
        kept = first or json.dumps(value)
        self.store.execute("UPDATE copies SET left = left - 1, first = ? WHERE key = ?", [kept, key])
        return None


def database(file: Path | None) -> sqlite3.Connection:
    """An empty one that outlives no kill, in a file or in memory."""
    if file:
        file.unlink(missing_ok=True)
    store = sqlite3.connect(file or ":memory:", isolation_level=None)
    for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE}"):
        store.execute(f"PRAGMA {setting}")
    store.execute("BEGIN")
    return store


def keys(texts: Iterable[str]) -> list[list[int]]:
    """BANDS numbers of each text: similar ones have at least one in common, most likely.

    MinHash LSH: Broder 1997, doi:10.1109/SEQUEN.1997.666900. Of 64 bits: among a million texts the chance that any two
    have a number in common for no reason is one in 200,000.
    """
    from datasketch import MinHash

    sketches = MinHash.bulk(map(shingles, texts), num_perm=SKETCH, seed=1)
    bands = (sketch.hashvalues[: BANDS * ROWS].reshape(BANDS, ROWS) for sketch in sketches)
    return [[key(bytes([place]) + band.tobytes()) for place, band in enumerate(text)] for text in bands]


def plain(text: str) -> str:
    """The same for texts that are equal but for blanks and case."""
    return " ".join(text.casefold().split())


def shingles(text: str) -> list[bytes]:
    """Runs of five words, or of five characters where a text has no words or no blanks between them; of a long text a
    sample chosen by hash, which leaves the similarity unbiased."""
    words = re.findall(r"\w+", text.casefold())
    if sum(map(len, words)) > LONG * len(words) or 2 * sum(map(len, words)) < len("".join(text.split())):
        words = list("".join(text.casefold().split()))
    runs = {" ".join(words[i : i + SHINGLE]).encode() for i in range(max(1, len(words) - SHINGLE + 1))}
    every = max(1, len(runs) // 2000)
    return [run for run in runs if every == 1 or number(run) % every == 0]


def number(text: bytes) -> int:
    """A 64-bit hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def key(text: bytes) -> int:
    """The same with a sign, as databases have it."""
    return number(text) - 2**63
