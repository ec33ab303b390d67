"""Documents from files of one's own: .txt, .jsonl, .json, .csv, .tsv, .parquet, also packed, or a folder of them.

A text file is a document; one that is longer than `split_characters` becomes several, cut between paragraphs, lines or
words, whichever keeps the pieces longest. Files are read in the order of their names (stages/data/parts/reading.py).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt

from stages.data import Dataset
from stages.data.parts import reading
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record

BETWEEN = ("\n\n", "\n", " ")  # where a text is cut, the best place first


class Documents(Dataset):
    method: Literal["documents"]
    text_field: str = "text"  # of files that have fields
    min_characters: NonNegativeInt = 200  # shorter documents teach little and upset duplicate detection
    split_characters: int | None = Field(2000, ge=100)  # of a .txt file; null: always one document

    def records(self, source: Path) -> Iterator[Record]:
        for file in reading.files(source)[0]:
            name, plain = reading.stem(file), reading.kind(file) == ".txt"
            field = "text" if plain else self.text_field
            number = 0
            for row in reading.rows(file, ("id", field)):
                if field not in row:
                    raise UserError(
                        f"{file}, record {number + 1}: no field '{field}'; its fields are: {', '.join(row)}"
                    )
                if not isinstance(row[field], str | None):
                    raise UserError(f"{file}, record {number + 1}: '{field}' is {row[field]!r:.40}, which is no text")
                for text in self.pieces(row[field] or "", plain):
                    yield {"id": f"{name}/{row.get('id', number)}", "source": name, "text": text}
                    number += 1

    def least(self) -> int:
        return self.min_characters

    def left_out(self, source: Path) -> list[str]:
        return [str(file.relative_to(source)) for file in reading.files(source)[1]]

    def pieces(self, text: str, plain: bool) -> list[str]:
        return cut(text, self.split_characters) if plain and self.split_characters else [text]


def cut(text: str, limit: int, between: tuple[str, ...] = BETWEEN) -> list[str]:
    """Pieces of at most `limit` characters that end where they may; a longer word stays whole. Nothing is lost."""
    text = text.replace("\r\n", "\n")
    if len(text) <= limit or not between:
        return [text]
    pieces: list[str] = []
    for part in text.split(between[0]):
        if pieces and len(pieces[-1]) + len(between[0]) + len(part) <= limit:
            pieces[-1] += between[0] + part
        else:
            pieces += cut(part, limit, between[1:])
    return [piece for piece in pieces if piece.strip()]
