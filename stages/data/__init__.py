"""Data: raw sources in, clean records without duplicates, split into train and held-out.

In   a source: a path that DVC tracks (corpus files, another record artefact, or the file that generates)
Out  records (stages/lib/store/records.py: train.jsonl, held_out.jsonl) and README.md, the data card;
     metrics: records read, dropped and kept, bytes, by split

Records that teach the same are dropped, of documents also those that are nearly equal. Records are split by a hash of
their text, or of their prompt, and the seed, unless they bring their `split` along: no text and no question is in both.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from stages.lib.frame.params import Share, Variant
from stages.lib.store.records import Record


class Dataset(Variant, ABC):
    """The contract of a technique."""

    source: Path
    licence: str = Field(min_length=3)  # goes into the data card and every model card after it
    held_out: Share = 0.05
    min_records: int = Field(20, ge=2)  # fewer are an error: splits would be empty
    seed: int = 0

    @abstractmethod
    def records(self, source: Path) -> Iterator[Record]:
        """The source's records one after another, each with an `id`, a `family` or `source`, and what to learn."""

    def least(self) -> int:
        """Characters of a document; what is shorter is dropped."""
        return 0

    def left_out(self, source: Path) -> list[str]:
        """The files of the source that `records` does not read."""
        return []
