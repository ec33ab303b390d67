"""Data: raw sources in, clean records without duplicates, split into train and held-out.

In   a source: a path that DVC tracks (corpus files, another record artefact, or the file that generates)
Out  records (stages/lib/store/records.py: train.jsonl, held_out.jsonl, and README.md, the data card);
     metrics: records read, dropped and kept, bytes, by split

A technique is one file here. It defines `Params` and `read(source, params) -> Iterator[record]`. A record is told from
another by its `text`, or by its `prompt`; equal ones are dropped, near-equal texts too. Records are split by a hash of
that text and the seed, unless they bring their `split` along.
"""

from pathlib import Path

from pydantic import Field

from stages.lib.frame.params import Share, Variant


class Source(Variant):
    """What every technique's variants share."""

    source: Path
    licence: str = Field(min_length=3)  # goes into the data card and every model card after it
    held_out: Share = 0.05
    min_records: int = Field(20, ge=2)  # fewer are an error: splits would be empty
    seed: int = 0
