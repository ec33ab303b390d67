"""The records that a model is measured on; none of them was in a training split."""

from typing import TYPE_CHECKING, TypeVar

from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record

if TYPE_CHECKING:
    pass

Row = TypeVar("Row")


def texts(records: list[Record], measure: str) -> list[str]:
    """Of documents; other records are refused."""
    if other := next((record for record in records if "text" not in record), None):
        raise UserError(f"eval.{measure}.records: record '{other['id']}' has no text; documents are wanted here")
    return [record["text"] for record in records]


def spread(rows: list[Row], number: int) -> list[Row]:
    """At most `number` rows at even distances, so that every source of a sorted file is among them."""
    step = max(1.0, len(rows) / number)
    return [rows[int(i * step)] for i in range(min(number, len(rows)))]
