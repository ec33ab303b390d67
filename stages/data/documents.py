"""Documents from files: .txt (a file a document), .jsonl or .jsonl.xz ("text" field), .parquet ("text" column).

The source is one such file or a folder of them, read in the order of their names.
"""

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from stages.data import Dataset
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record, parse

KINDS = (".txt", ".jsonl", ".jsonl.xz", ".parquet")


class Documents(Dataset):
    method: Literal["documents"]
    text_field: str = "text"  # of a .jsonl or .parquet file

    def records(self, source: Path) -> Iterator[Record]:
        files = [source] if source.is_file() else sorted(f for f in source.rglob("*") if f.name.endswith(KINDS))
        if not files or not files[0].name.endswith(KINDS):
            raise UserError(f"{source}: no file to read; a source is a {', '.join(KINDS)} file or a folder of them")
        for file in files:
            name, field = file.name.split(".")[0], "text" if file.suffix == ".txt" else self.text_field
            for number, row in enumerate(rows(file)):
                if not isinstance(row.get(field), str):
                    have = ", ".join(row)
                    raise UserError(f"{file}, record {number + 1}: no text under '{field}'; its fields are: {have}")
                yield {"id": f"{name}/{row.get('id', number)}", "source": name, "text": row[field]}


def rows(file: Path) -> Iterator[Record]:
    if file.suffix == ".txt":
        yield {"id": 0, "text": file.read_text(encoding="utf-8")}
    elif file.suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    else:
        with lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield parse(file, number, line)
