"""Rows of a user's own files, one after another: nothing is held in memory but the row, which of a .txt is the file.

.txt (a text), .jsonl, .json (an array or lines), .csv, .tsv, .parquet; each but the last also as .gz, .bz2, .xz or
.zst. What cannot be read is said in one line that begins with the file.
"""

import csv
import json
import os
import re
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Collection, Iterator
from io import BufferedReader, FileIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any

from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record

KINDS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".bz2", ".xz", ".zst")
PEEK, BLOCK = 4096, 2**20  # of a .json: bytes that tell an array from lines, characters that are decoded at a time
ROWS = 1000  # of a .parquet in memory
LONE_RETURN = re.compile(r"\r(?!\n)")  # of a table: csv takes it for the end of a row, whoever wrote it did not


def kind(file: Path) -> str | None:
    """Which of KINDS a file's name says it is, whatever its case; a dot in front hides a file."""
    name = file.name.lower()
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    found = next((kind for kind in KINDS if name.endswith(kind)), None)
    return None if file.name.startswith(".") or (found == ".parquet" and name != file.name.lower()) else found


def stem(file: Path) -> str:
    """The name without what `kind` read from it."""
    name = file.name
    for suffix in (*PACKED, *KINDS):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name


def files(source: Path) -> tuple[list[Path], list[Path]]:
    """(what can be read, what is left out) of a file or of a folder and all below it, links followed, by name."""
    if source.is_file():
        every = [source]
    else:
        walked = os.walk(source, followlinks=True)
        every = sorted(Path(folder, name) for folder, _, names in walked for name in names)
    readable = [file for file in every if kind(file)]
    if not readable:
        kinds = f"{', '.join(KINDS)}, each but the last also with {', '.join(PACKED)}"
        raise UserError(f"{source}: no file to read; a source is a file or a folder of files that end in {kinds}")
    return readable, [file for file in every if not kind(file)]


def with_fields(source: Path) -> tuple[list[Path], list[Path]]:
    """The same, of files whose rows have fields; a .txt has none."""
    readable, rest = files(source)
    tables = [file for file in readable if kind(file) != ".txt"]
    if not tables:
        raise UserError(f"{source}: only .txt files, which have no fields: give one of {', '.join(KINDS[1:])}")
    return tables, sorted([*rest, *set(readable).difference(tables)])


def all_rows(source: Path, fields: Collection[str]) -> Iterator[tuple[str, str, Record]]:
    """(place for a message, id, row) of every row that has fields, file by file."""
    for file in with_fields(source)[0]:
        for number, row in enumerate(rows(file, fields)):
            yield f"{file}, record {number + 1}", f"{stem(file)}/{row.get('id', number)}", row


def rows(file: Path, fields: Collection[str]) -> Iterator[Record]:
    """The rows of a file; of columns only those `fields` are read. A .txt is one row with `text`."""
    import lzma

    import pyarrow

    try:
        yield from READERS[str(kind(file))](file, fields)
    except (EOFError, OSError, lzma.LZMAError, pyarrow.ArrowException, csv.Error) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{file} cannot be read: {said or type(error).__name__}; is it what its name says?") from error


class Source(FileIO):
    """A file that counts what is read of it and of all others: how far a stage has come."""

    bytes_read = 0

    def readinto(self, buffer: Any, /) -> int | None:
        count = super().readinto(buffer)
        Source.bytes_read += count or 0
        return count


def text(file: Path, _fields: Collection[str]) -> Iterator[Record]:
    yield {"text": "".join(line for _, line in lines(file))}


def json_lines(file: Path, _fields: Collection[str]) -> Iterator[Record]:
    for number, line in lines(file):
        if line.strip():
            yield checked(file, f"line {number}", parsed(file, f"line {number}", line))


def json_file(file: Path, fields: Collection[str]) -> Iterator[Record]:
    """An array of objects; anything else is taken for lines."""
    with opened(file) as stream:
        begin = stream.read(PEEK).removeprefix(BOM_UTF8).lstrip()[:1]
    if begin != b"[":
        yield from json_lines(file, fields)
        return
    try:
        for number, row in enumerate(array(file), 1):
            yield checked(file, f"record {number}", row)
    except UnicodeDecodeError:
        deque(lines(file), maxlen=0)  # which says where
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}, the array: not JSON ({error})") from None


def array(file: Path) -> Iterator[object]:
    """The elements of a JSON array; in memory are two blocks of the file, or its longest element."""
    decode, mark, before = json.JSONDecoder().raw_decode, re.compile(r"\s*(.)\s*(\]?)", re.DOTALL), "["
    text, place = "", 0
    with TextIOWrapper(opened(file), "utf-8-sig") as stream:
        while True:
            found = mark.match(text, place)
            if found and (found[1] == "]" if before == "," else found[1] == "[" and found[2]):
                break
            try:
                if not found or found[1] != before:
                    raise ValueError(f"no {before!r} in front of an element")
                element, end = decode(text, found.end())
            except (ValueError, RecursionError):
                block = stream.read(max(BLOCK, len(text) - place))
                if not block:
                    raise
                text, place = text[place:] + block, 0
                continue
            yield element
            place, before = end, ","
        if text[found.end() :].strip() or stream.read().strip():
            raise ValueError("more behind its end")


def table(file: Path, _fields: Collection[str]) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # a text may be long
    cells = (LONE_RETURN.sub(" ", line) for _, line in lines(file))
    table = csv.DictReader(cells, delimiter="\t" if kind(file) == ".tsv" else ",", strict=True)
    for row in table:
        if more := row.pop(None, None):  # pyright: ignore[reportArgumentType, reportCallIssue]
            fields = f"{len(row) + len(more)} fields, but {len(row)} names in the first line"
            raise UserError(f"{file}, line {table.line_num}: {fields}: put texts that hold a delimiter into quotes")
        yield dict(row)


def parquet(file: Path, fields: Collection[str]) -> Iterator[Record]:
    from pyarrow.parquet import ParquetFile

    opened = ParquetFile(BufferedReader(Source(file)))
    wanted = [name for name in opened.schema_arrow.names if name in fields]
    if not wanted:
        yield dict.fromkeys(opened.schema_arrow.names)
        return
    for batch in opened.iter_batches(ROWS, columns=wanted):
        for row in batch.to_pylist():
            yield {name: decoded(file, name, value) for name, value in row.items()}


READERS = {".txt": text, ".jsonl": json_lines, ".json": json_file, ".csv": table, ".tsv": table, ".parquet": parquet}


def lines(file: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of a file in UTF-8, with a byte order mark in front or without."""
    with opened(file) as stream:
        for number, line in enumerate(stream, 1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                other = "utf-16" if line[:2] in (b"\xff\xfe", b"\xfe\xff") else "latin1"
                wrong = f"byte 0x{line[error.start]:02x} at place {error.start}"
                how = f"if it is {other}, `iconv -f {other} -t utf-8` converts it"
                raise UserError(f"{file}, line {number}: not UTF-8 ({wrong}); {how}") from None


def opened(file: Path) -> IO[bytes]:
    import lzma

    import pyarrow

    packed, source = file.suffix.lower(), BufferedReader(Source(file))
    if packed == ".xz":
        return lzma.open(source)
    if packed in PACKED:
        codec = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}[packed]
        return BufferedReader(pyarrow.input_stream(source, compression=codec))  # pyright: ignore[reportArgumentType]
    return source


def parsed(file: Path, place: str, written: str) -> Any:
    try:
        return json.loads(written)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}, {place}: not JSON ({error})") from None


def checked(file: Path, place: str, row: object) -> Record:
    if not isinstance(row, dict):
        raise UserError(f'{file}, {place}: {str(row)[:40]!r} is no record; one is an object, {{"name": value, ...}}')
    return row


def decoded(file: Path, name: str, value: object) -> object:
    """Bytes are text that Spark or Hive wrote; anything else in them is no text."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise UserError(f"{file}: column '{name}' holds bytes that are not UTF-8, so no text") from None
