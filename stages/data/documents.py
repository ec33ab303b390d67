"""Documents from files: .txt (a file a document), .jsonl or .jsonl.xz ("text" field), .parquet ("text" column).

The source is one such file or a folder of them, read in the order of their names.
"""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from stages.data import Source
from stages.lib.frame.errors import UserError
from stages.lib.store import records

KINDS = (".txt", ".jsonl", ".jsonl.xz", ".parquet")


class Params(Source):
    method: Literal["documents"]
    text_field: str = "text"


def read(source: Path, p: Params) -> Iterator[records.Record]:
    files = [source] if source.is_file() else sorted(f for f in source.rglob("*") if f.name.endswith(KINDS))
    if not files or not files[0].name.endswith(KINDS):
        raise UserError(f"{source}: no file to read; a source is a {', '.join(KINDS)} file or a folder of them")
    for file in files:
        name = file.name.split(".")[0]
        for number, row in enumerate(rows(file)):
            if not isinstance(row.get(p.text_field), str):
                have = ", ".join(row)
                raise UserError(f"{file}, record {number + 1}: no text under '{p.text_field}'; its fields are: {have}")
            yield {"id": f"{name}/{row.get('id', number)}", "source": name, "text": row[p.text_field]}


def rows(file: Path) -> Iterator[records.Record]:
    if file.suffix == ".txt":
        yield {"id": 0, "text": file.read_text(encoding="utf-8")}
    elif file.suffix == ".parquet":
        from pyarrow import parquet

        for batch in parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    else:
        with lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                yield json.loads(line) if file.suffix == ".xz" else records.parse(file, number, line)
