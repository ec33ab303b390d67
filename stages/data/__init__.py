"""Data: raw sources in, clean records without duplicates, split into train and held-out.

In   a source: a path that DVC tracks (corpus files, another record artefact, or the file that generates), or under
     `hub` a data set of the Hugging Face hub
Out  records (stages/lib/store/records.py: train.jsonl, held_out.jsonl) and README.md, the data card;
     metrics: records read, dropped and kept, bytes, by split

Records that teach the same are dropped, of documents also those that are nearly equal. Records are split by a hash of
their text, or of their prompt, and the seed, unless they bring their `split` along: no text and no question is in both.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field, model_validator

from stages.lib.frame.params import Params, Share, Variant
from stages.lib.store.records import Record

NAME = r"[\w.-]+(/[\w.-]+)?"  # of a data set on the hub


class Hub(Params):
    """What to take of a data set on the Hugging Face hub."""

    revision: str = Field(pattern="^[0-9a-f]{40}$")  # the commit: the same rows tomorrow
    subset: str | None = None  # its configuration, where it has several
    split: str = "train"


class Dataset(Variant, ABC):
    """The contract of a technique."""

    source: Path  # or the name of a data set on the hub
    hub: Hub | None = None
    licence: str = Field(min_length=3)  # goes into the data card and every model card after it
    held_out: Share = 0.05
    min_records: int = Field(20, ge=2)  # fewer are an error: splits would be empty
    seed: int = 0

    @model_validator(mode="after")
    def named_on_the_hub(self) -> "Dataset":
        if self.hub and not re.fullmatch(NAME, str(self.source)):
            raise ValueError(f"source is '{self.source}', but with `hub` it must be the name of a data set: org/name")
        if self.hub and self.source.exists():  # which the client would take instead
            raise ValueError(f"source is '{self.source}', which is a path here: leave out `hub`, or go elsewhere")
        return self

    def section(self) -> str:
        return "hub" if self.hub else super().section()

    @abstractmethod
    def records(self, source: Path) -> Iterator[Record]:
        """The source's records one after another, each with an `id`, a `family` or `source`, and what to learn."""

    def least(self) -> int:
        """Characters of a document; what is shorter is dropped."""
        return 0

    def require(self, kinds: Mapping[str, Counter[str]], place: str) -> None:
        """Refuse splits from which nothing can be learnt, by how many records of each kind they have."""

    def left_out(self, source: Path) -> list[str]:
        """The files of the source that `records` does not read."""
        return []
