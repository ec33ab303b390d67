"""Users' own files as they come: every kind, packed or not; what is broken is named, what is odd is read."""

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from stages.data import documents
from stages.data.parts import clean, reading
from stages.lib.frame.errors import UserError
from stages.lib.text import duplicates

TEXTS = ["First, with ü and\nlines.", 'He said "no", and left.', "ends; here\t."]
LINES = "".join(json.dumps({"id": i, "text": text}, ensure_ascii=False) + "\n" for i, text in enumerate(TEXTS))


def read(source, **more):
    technique = documents.Documents(method="documents", source=source, licence="mine", **more)
    return [row["text"] for row in technique.records(Path(source))]


def table(delimiter, file):
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerows([["id", "text"], *enumerate(TEXTS)])


WRITERS = {
    "a.jsonl": lambda file: file.write_text(LINES, encoding="utf-8"),
    "a.JSONL": lambda file: file.write_text(LINES, encoding="utf-8"),
    "bom.jsonl": lambda file: file.write_bytes(b"\xef\xbb\xbf" + LINES.encode()),
    "crlf.jsonl": lambda file: file.write_bytes(LINES.replace("\n", "\r\n").encode()),
    "blank.jsonl": lambda file: file.write_text("\n" + LINES.replace("\n", "\n  \n") + "\n\n", encoding="utf-8"),
    "no-last-newline.jsonl": lambda file: file.write_text(LINES.rstrip(), encoding="utf-8"),
    "array.json": lambda file: file.write_text(json.dumps([json.loads(line) for line in LINES.splitlines()], indent=1)),
    "lines.json": lambda file: file.write_text(LINES, encoding="utf-8"),
    "a.csv": lambda file: table(",", file),
    "a.tsv": lambda file: table("\t", file),
    "a.jsonl.gz": lambda file: file.write_bytes(gzip.compress(LINES.encode())),
    "a.jsonl.bz2": lambda file: file.write_bytes(bz2.compress(LINES.encode())),
    "a.jsonl.xz": lambda file: file.write_bytes(lzma.compress(LINES.encode())),
    "a.jsonl.zst": lambda file: file.write_bytes(pa.compress(LINES.encode(), codec="zstd", asbytes=True)),
    "a.parquet": lambda file: parquet.write_table(pa.table({"id": [0, 1, 2], "text": TEXTS}), file),
    "bytes.parquet": lambda file: parquet.write_table(pa.table({"text": [text.encode() for text in TEXTS]}), file),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_texts(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert read(tmp_path) == TEXTS == read(tmp_path / name)


ARRAYS = [
    "[]",
    " [ \n ] \n",
    '[{"a": [1, {"b": "]"}, []]} , {"c": "\\u00fc,"}\n,{}]',
    '\ufeff[{"a": "' + "x" * 99 + '"}]',
    '[{"a": 1},]',
    '[,{"a": 1}]',
    '[{"a": 1} {"a": 2}]',
    '[{"a": 1}] more',
    '[{"a": 1}],',
    '[{"a": 1}',
    "[",
    '[{"a": }]',
]


@pytest.mark.parametrize("block", [1, 7, 2**20])
@pytest.mark.parametrize("written", ARRAYS)
def test_arrays_are_what_json_says_though_read_in_blocks(written, block, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", block)
    file = tmp_path / "a.json"
    file.write_text(written, encoding="utf-8")
    try:
        expected = json.loads(written.removeprefix("\ufeff"))
    except ValueError:
        with pytest.raises(UserError, match="a.json, the array: not JSON"):
            list(reading.rows(file, ()))
    else:
        assert list(reading.rows(file, ())) == expected


@pytest.mark.parametrize("name", WRITERS)
def test_how_far_a_file_was_read_is_counted(name, tmp_path):
    WRITERS[name](tmp_path / name)
    before = reading.Source.bytes_read
    assert read(tmp_path)
    counted, size = reading.Source.bytes_read - before, (tmp_path / name).stat().st_size
    assert size <= counted <= 2 * size or name.endswith("parquet")  # a .json is looked at before it is read


BROKEN = {
    "latin1.jsonl": (LINES.encode("latin1"), "line 1: not UTF-8 .byte 0xfc at place .*iconv -f latin1 -t utf-8"),
    "utf16.txt": ("a text".encode("utf-16"), "line 1: not UTF-8 .*iconv -f utf-16 -t utf-8"),
    "cut.jsonl": (LINES.encode()[:-9], "line 3: not JSON"),
    "array.jsonl": (b'[{"text": "a"}]', "line 1: .* is no record"),
    "list.jsonl": (LINES.encode() + b"[1, 2]\n", "line 4: .* is no record"),
    "number.json": (b"[7]", "record 1: '7' is no record"),
    "cut.json": (b'[{"text": "a"},', "the array: not JSON"),
    "latin1.json": (b'[{"text": "a"},\n{"text": "\xfc"}]', "line 2: not UTF-8 .byte 0xfc"),
    "cut.jsonl.xz": (lzma.compress(LINES.encode())[:-20], "cannot be read"),
    "cut.jsonl.gz": (gzip.compress(LINES.encode() * 50)[:-20], "cannot be read"),
    "plain.jsonl.xz": (LINES.encode(), "cannot be read.*is it what its name says"),
    "plain.jsonl.gz": (LINES.encode(), "cannot be read.*is it what its name says"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\n", "cannot be read.*is it what its name says"),
    "open.csv": (b'id,text\n1,"never closed\n', "cannot be read"),
    "other.jsonl": (b'{"body": "a", "title": "b"}\n', "record 1: no field 'text'; its fields are: body, title"),
    "list-of-words.jsonl": (b'{"text": ["a", "b"]}\n', "record 1: 'text' is .* which is no text"),
    "picture.parquet": (None, "column 'text' holds bytes that are not UTF-8"),
    "other.parquet": (None, "no field 'text'; its fields are: body"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_in_one_line_and_nobody_is_told_to_delete_it(tmp_path, name):
    content, message = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    else:
        columns = {"text": [b"\x89PNG\xff"]} if name.startswith("picture") else {"body": ["a"]}
        parquet.write_table(pa.table(columns), tmp_path / name)
    with pytest.raises(UserError, match=message) as refusal:
        read(tmp_path)
    said = str(refusal.value)
    assert said.startswith(str(tmp_path / name)) and "\n" not in said and "delete" not in said


def test_hidden_files_are_no_data_and_what_is_left_out_is_told(tmp_path):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/a.jsonl").write_text(LINES)
    (tmp_path / "deep/._a.jsonl").write_bytes(b"\x00\x05\x16\x07Mac OS X\xff")
    (tmp_path / "b.pdf").write_bytes(b"%PDF")
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-elsewhere")
    elsewhere.mkdir()
    (elsewhere / "c.txt").write_text("linked")
    (tmp_path / "link").symlink_to(elsewhere)
    technique = documents.Documents(method="documents", source=tmp_path, licence="mine")
    assert sorted(read(tmp_path)) == sorted([*TEXTS, "linked"])
    assert technique.left_out(tmp_path) == ["b.pdf", "deep/._a.jsonl"]


def test_rows_without_a_text_are_too_short_not_errors(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES + '{"text": null}\n{"text": ""}\n')
    kept = [clean.worth_keeping({"text": text}, 0) for text in read(tmp_path)]
    assert kept == [True] * 3 + [False] * 2


def test_columns_that_nobody_asked_for_are_not_read(tmp_path, monkeypatch):
    parquet.write_table(pa.table({"id": [1], "text": ["a"], "image": [b"\xff" * 9]}), tmp_path / "a.parquet")
    [row] = reading.rows(tmp_path / "a.parquet", ("id", "text"))
    assert row == {"id": 1, "text": "a"}


def test_half_a_surrogate_pair_becomes_a_sign_that_can_be_written(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud83d b \\ud83d\\ude00"}\n')
    assert [clean.normalise({"text": text})["text"] for text in read(tmp_path)] == ["a � b 😀"]


@pytest.mark.parametrize("between", ["\n\n", "\n", " "])
def test_a_long_text_file_becomes_documents_and_nothing_is_lost(tmp_path, between):
    text = between.join(f"word{i} " * 9 + "end." for i in range(200))
    (tmp_path / "book.txt").write_text(text)
    pieces = read(tmp_path, split_characters=700)
    assert max(map(len, pieces)) <= 700 and min(map(len, pieces[:-1])) > 350
    assert between.join(pieces) == text
    assert read(tmp_path, split_characters=None) == [text]
    assert len(read(tmp_path)) < len(pieces)


WITHOUT_WORDS = ["".join(chr(0x2800 + (i * 37 + j * j * 11) % 255 + 1) for j in range(120)) for i in range(40)]
WITHOUT_BLANKS = ["".join(chr(0x4E00 + (i * 7919 + j * j * 31) % 5000) for j in range(300)) for i in range(40)]


@pytest.mark.parametrize("texts", [WITHOUT_WORDS, WITHOUT_BLANKS])
def test_texts_without_words_or_blanks_are_told_apart_and_near_ones_found(texts):
    seen = duplicates.Seen()
    assert all(seen.add(text) for text in texts)
    near = texts[3][:60] + "!" + texts[3][60:]
    assert not seen.add(near)


def test_the_same_question_with_other_answers_is_another_record():
    rows = [{"prompt": "Why?", "chosen": "a", "rejected": str(i)} for i in range(5)]
    assert len({clean.same(row) for row in [*rows, *rows]}) == 5
    for seed in range(20):
        assert len({clean.split(row, 0.5, seed) for row in rows}) == 1, "no question is in both splits"


def test_a_row_with_more_fields_than_names_is_refused(tmp_path):
    """A text with a comma and no quotes: its end would be taken for the label."""
    (tmp_path / "a.csv").write_text("text,label\nfine,good\nfine, but long,bad\n")
    with pytest.raises(UserError, match="a.csv, line 3: 3 fields, but 2 names in the first line: put texts that hold"):
        list(reading.rows(tmp_path / "a.csv", ()))
    (tmp_path / "a.csv").write_text("text,label\nno label\n")
    assert list(reading.rows(tmp_path / "a.csv", ())) == [{"text": "no label", "label": None}]


def test_a_return_within_a_row_is_a_blank(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b'text\tlabel\r\nfine\r\tgood\r\n"two\r\nlines"\tbad\r\n')
    found = [{"text": "fine ", "label": "good"}, {"text": "two\r\nlines", "label": "bad"}]
    assert list(reading.rows(tmp_path / "a.tsv", ())) == found
