"""Data: raw sources in, clean records without duplicates, split into train and held-out.

In   a source: a path that DVC tracks (corpus files, another record artefact, or the file that generates)
Out  records (stages/lib/store/records.py: train.jsonl, held_out.jsonl) and README.md, the data card;
     metrics: records read, dropped and kept, bytes, by split

A record is told from another by its `text`, or by its `prompt`; equal ones are dropped, near-equal texts too. Records
are split by a hash of that text and the seed, unless they bring their `split` along.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

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

    @field_validator("source")
    @classmethod
    def fits_a_command(cls, source: Path) -> Path:
        if "'" in str(source):
            raise PydanticCustomError("quote", "a path with ' cannot be passed on the command line of dvc.yaml")
        return source
