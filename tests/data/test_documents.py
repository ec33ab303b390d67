"""One's own data: every kind of file gives the same documents; what is wrong is named."""

import json
import lzma

import pytest
from datasets import Dataset

from stages.data import documents
from stages.lib.frame.errors import UserError

ROWS = [{"id": "a", "text": "First, with \u00fc and\nlines."}, {"id": "b", "text": "Second."}]


def read(source, **more):
    technique = documents.Documents(method="documents", source=source, licence="mine", **more)
    return list(technique.records(source))


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.xz", "parquet", "txt"])
def test_kinds(tmp_path, kind):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind == "txt":
        for row in ROWS:
            (tmp_path / f"{row['id']}.txt").write_text(row["text"])
    elif kind == "parquet":
        Dataset.from_list(ROWS).to_parquet(tmp_path / "mine.parquet")
    elif kind == "jsonl":
        (tmp_path / "mine.jsonl").write_text(lines)
    else:
        with lzma.open(tmp_path / "mine.jsonl.xz", "wt", encoding="utf-8") as file:
            file.write(lines)
    assert [row["text"] for row in read(tmp_path)] == [row["text"] for row in ROWS]


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(UserError, match="no file to read.*parquet"):
        read(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text": "tw')
    with pytest.raises(UserError, match="bad.jsonl, line 2: not JSON") as error:
        read(tmp_path)
    assert "delete" not in str(error.value)  # it is the user's own file
    (tmp_path / "bad.jsonl").write_text('{"body": "one"}\n')
    with pytest.raises(UserError, match="no field 'text'; its fields are: body"):
        read(tmp_path)
    (tmp_path / "notes.txt").write_text("two")  # has no fields
    assert [row["text"] for row in read(tmp_path, text_field="body")] == ["one", "two"]
