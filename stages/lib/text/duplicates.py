"""Texts that say the same twice: exactly, blanks and case aside, or nearly, by MinHash over runs of words."""

import hashlib
import re
from collections.abc import Iterable

SHINGLE = 5  # words; the unit in which two texts are compared
LONG = 15  # letters of a word on average: of a script without blanks, or no words
SIMILAR = 0.7  # Jaccard similarity of shingles from which on two texts count as one


class Seen:
    """Texts so far. MinHash LSH: Broder 1997, doi:10.1109/SEQUEN.1997.666900."""

    def __init__(self, texts: Iterable[str] = ()):
        from datasketch import MinHashLSH

        self.index, self.count = MinHashLSH(threshold=SIMILAR, num_perm=128), 0
        for text in texts:
            self.add(text)

    def add(self, text: str) -> bool:
        """Whether the text is new; only then is it remembered."""
        from datasketch import MinHash

        sketch = MinHash(num_perm=128, seed=1)
        sketch.update_batch(shingles(text))
        if self.index.query(sketch):
            return False
        self.index.insert(str(self.count), sketch)
        self.count += 1
        return True


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
    return sorted(run for run in runs if every == 1 or number(run) % every == 0)


def number(text: bytes) -> int:
    """A 64-bit hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
