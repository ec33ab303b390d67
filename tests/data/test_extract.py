"""Fields to be found in texts: what becomes a record, and what is refused."""

import json

import pytest

from stages.data import extract
from stages.lib.frame.errors import UserError
from stages.lib.text import problems

PERSON = {"name": "Änn", "age": 31, "tags": ["a"], "left": None}


def records(folder, *rows, **more):
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(extract.Extract(method="extract", source=folder, licence="mine", **more).records(folder))


def test_an_object_its_json_and_columns_are_the_same_record(tmp_path):
    [first] = records(tmp_path, {"text": " Änn is 31. ", "fields": PERSON})
    assert first == {
        "id": "a/0",
        "family": "extract",
        "prompt": "Änn is 31.\n\nJSON with name, age, tags, left:",
        "solution": '{"name": "Änn", "age": 31, "tags": ["a"], "left": null}',
        "scorer": "json",
    }
    assert records(tmp_path, {"text": "Änn is 31.", "fields": json.dumps(PERSON)}) == [first]
    assert records(tmp_path, {"text": "Änn is 31.", **PERSON}, fields=list(PERSON)) == [first]
    assert json.loads(first["solution"]) == PERSON and problems.correct(first, json.dumps(PERSON, indent=2))


def test_names_and_the_template_are_ones_own(tmp_path):
    row = {"body": "It costs $5 {fields}.", "found": {"price": 5}}
    [found] = records(tmp_path, row, text_field="body", fields="found", template="{fields} of: {text}")
    assert found["prompt"] == "price of: It costs $5 {fields}."  # the text stays as it is
    with pytest.raises(
        ValueError, match="it must hold {text}, where the text goes, and may hold {fields}, their names"
    ):
        records(tmp_path, row, template="{fields}?")
    with pytest.raises(ValueError, match="fields"):
        records(tmp_path, row, fields=[])


def test_tables_too(tmp_path):
    import pandas

    pandas.DataFrame({"text": ["x"], "name": ["Ann"], "age": [31]}).to_parquet(tmp_path / "a.parquet")
    p = {"method": "extract", "source": tmp_path, "licence": "mine"}
    [found] = extract.Extract(**p, fields=["age", "name"]).records(tmp_path)
    assert found["solution"] == '{"age": 31, "name": "Ann"}'


@pytest.mark.parametrize(
    ("row", "more", "said"),
    [
        ({"fields": {"a": 1}}, {}, "no field 'text'; its fields are: fields"),
        ({"text": "x"}, {}, "no field 'fields'; its fields are: text"),
        ({"text": "x", "a": 1}, {"fields": ["a", "b"]}, "no field 'b'; its fields are: text, a"),
        ({"text": 3, "fields": {"a": 1}}, {}, "'text' is 3, which is no text"),
        ({"text": "x", "fields": "{"}, {}, "'fields' is '{', which is not JSON"),
        ({"text": "x", "fields": "[1]"}, {}, "'fields' is .1., which is no JSON object with fields"),
        ({"text": "x", "fields": {}}, {}, "'fields' is {}, which is no JSON object with fields"),
        ({"text": "x", "fields": {"a": float("nan")}}, {}, "its fields cannot be written as JSON"),
    ],
)
def test_what_cannot_be_learnt_is_refused_in_one_line(row, more, said, tmp_path):
    with pytest.raises(UserError, match=f"a.jsonl, record 1: {said}") as error:
        records(tmp_path, row, **more)
    assert "\n" not in str(error.value)


def test_empty_texts_are_dropped(tmp_path):
    from stages.data.parts import clean

    assert not any(clean.worth_keeping(row, 0) for row in records(tmp_path, {"text": " ", "fields": {"a": 1}}))
