"""Labelled texts from files of one's own: a text a row, and one of a few labels, perhaps unknown.

Rows without a label are what a teacher can label (traces/labels). A column `split`, train or held_out, is followed;
without it the split is by hash.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from stages.data.parts import reading
from stages.data.parts.texts import Texts
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.store.records import SPLITS, Record
from stages.lib.text.labels import TEXT

MOST = 100  # labels: with more, the column is no label


class Classify(Texts):
    method: Literal["classify"]
    label_field: str = "label"
    names: dict[str, str] = {}  # a label in the file -> the word that the model says; others are said as they are
    labels: list[str] | None = Field(None, min_length=2)  # the words, in order; none: those that the file has

    def records(self, source: Path) -> Iterator[Record]:
        labels = self.labels or self.found(source)
        for place, name, row in reading.all_rows(source, ("id", self.text_field, self.label_field, "split")):
            text, label = self.text(row, place), self.label(row)
            if label and label not in labels:
                raise UserError(f"{place}: label {label!r} is none of {params.names(labels)}")
            record = {"id": name, "family": family(label), "labels": labels, "template": self.template}
            record["prompt"] = self.template.replace(TEXT, text) if text else ""  # the empty ones are dropped
            if label:
                record["solution"] = label
            if split := row.get("split"):
                if split not in SPLITS:
                    raise UserError(f"{place}: split {split!r} is none of {params.names(SPLITS)}")
                record["split"] = split
            yield record

    def require(self, kinds: Mapping[str, Counter[str]], place: str) -> None:
        train, held_out = ({**kinds[split]} for split in SPLITS)
        for each in (train, held_out):
            each.pop(family(None), None)
        if unseen := sorted(held_out.keys() - train.keys()):
            raise UserError(
                f"{place}: label {unseen[0]!r} is only in the held-out part ({held_out[unseen[0]]} rows), so nothing "
                "teaches it: give more rows of it, leave it out, or say in a column `split` which rows are train"
            )
        if len(train) == 1:
            raise UserError(f"{place}: all rows to train on are {next(iter(train))!r}: nothing tells labels apart")

    def found(self, source: Path) -> list[str]:
        """The labels of the file, by name."""
        seen: set[str] = set()
        for place, _, row in reading.all_rows(source, (self.text_field, self.label_field)):
            self.text(row, place)
            if (label := self.label(row)) is not None:
                seen.add(label)
            if len(seen) > MOST:
                raise UserError(f"{place}: more than {MOST} different values of '{self.label_field}', so no labels")
        if len(seen) < 2:
            values = params.names(map(repr, seen))
            raise UserError(
                f"{source}: '{self.label_field}' has the values {values}: it takes two labels to tell texts apart; "
                "where no text has one, give `labels`"
            )
        return sorted(seen)

    def text(self, row: Record, place: str) -> str:
        if self.text_field not in row:
            fields = params.names(row)
            raise UserError(f"{place}: no field '{self.text_field}' (text_field); its fields are: {fields}")
        return super().text(row, place)

    def label(self, row: Record) -> str | None:
        """The word for a row's label; none if it has no label."""
        value = row.get(self.label_field)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        said = "" if value is None else str(value).strip()
        return self.names.get(said, said) or None


def family(label: str | None) -> str:
    """A name that metrics can have."""
    return re.sub(r"\W+", "_", label or "unlabelled")
