"""Fields to be found in texts, from files of one's own: a text a row and what is in it, which the model says in JSON.

What is in a text is an object in one column (`fields: NAME`), or some columns (`fields: [NAME, NAME]`). A row asks for
the fields that it has; a field that its text doesn't mention is null there, so that the model learns to say so.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages.data.parts import reading
from stages.data.parts.clean import whole
from stages.data.parts.texts import Texts
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record
from stages.lib.text.labels import TEXT

FIELDS = "{fields}"  # where a template has their names


class Extract(Texts):
    MORE = f", and may hold {FIELDS}, their names"

    method: Literal["extract"]
    fields: str | list[str] = Field("fields", min_length=1)  # the column that holds an object, or several columns
    template: str = f"{TEXT}\n\nJSON with {FIELDS}:"  # what the model is asked

    def records(self, source: Path) -> Iterator[Record]:
        columns = [self.fields] if isinstance(self.fields, str) else self.fields
        for place, name, row in reading.all_rows(source, ("id", self.text_field, *columns)):
            if missing := [column for column in (self.text_field, *columns) if column not in row]:
                raise UserError(f"{place}: no field {missing[0]!r}; its fields are: {', '.join(row)}")
            text, found = self.text(row, place), self.object(row, place)
            asked = self.template.replace(FIELDS, ", ".join(found)).replace(TEXT, text)
            prompt = asked if text else ""  # the empty ones are dropped
            solution = written(found, place)
            yield {"id": name, "family": "extract", "prompt": prompt, "solution": solution, "scorer": "json"}

    def object(self, row: Record, place: str) -> dict[str, Any]:
        """What is to be found in the text of a row."""
        if isinstance(self.fields, list):
            return {name: row[name] for name in self.fields}
        value = row[self.fields]
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{place}: '{self.fields}' is {value!r:.40}, which is not JSON ({error})") from None
        if not isinstance(value, dict) or not value:
            raise UserError(f"{place}: '{self.fields}' is {value!r:.40}, which is no JSON object with fields")
        return value


def written(found: dict[str, Any], place: str) -> str:
    try:
        return whole(json.dumps(found, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: its fields cannot be written as JSON: {error}") from None
