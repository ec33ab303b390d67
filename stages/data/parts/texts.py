"""What techniques share that ask a model about a text a row."""

from abc import ABC
from typing import ClassVar

from pydantic import field_validator

from stages.data.parts.clean import whole
from stages.data.parts.tables import Table
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record
from stages.lib.text.labels import TEXT


class Texts(Table, ABC):
    MORE: ClassVar[str] = ""  # what a template may hold besides the text

    text_field: str = "text"
    template: str = TEXT  # what the model is asked

    @field_validator("template")
    @classmethod
    def holds_the_text(cls, template: str) -> str:
        if TEXT not in template:
            raise ValueError(f"it must hold {TEXT}, where the text goes{cls.MORE}")
        return template

    def text(self, row: Record, place: str) -> str:
        """Of a row that has the field; without blanks around it."""
        text = row[self.text_field]
        if not isinstance(text, str | None):
            raise UserError(f"{place}: '{self.text_field}' is {text!r:.40}, which is no text")
        return whole(text or "").strip()
