"""Labelled texts: what becomes a record, in which order the labels stand, and what is refused."""

import json
from collections import Counter
from contextlib import nullcontext

import pytest

from stages.data import classify
from stages.lib.frame.errors import UserError

P = {"method": "classify", "licence": "none", "min_records": 2}
ROWS = [{"text": "Great fun", "label": "pos"}, {"text": "So dull", "label": "neg"}, {"text": "Hm", "label": None}]


def records(tmp_path, rows, **p):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(classify.Classify(**P, source=file, **p).records(file))


def test_a_row_becomes_a_record(tmp_path):
    first, second, third = records(
        tmp_path, ROWS, names={"pos": "positive", "neg": "negative"}, template="Is it? {text}!"
    )
    assert first == {
        "id": "rows/0",
        "family": "positive",
        "labels": ["negative", "positive"],
        "template": "Is it? {text}!",
        "prompt": "Is it? Great fun!",
        "solution": "positive",
    }
    assert second["solution"] == "negative"
    assert "solution" not in third and third["family"] == "unlabelled"


def test_fields_can_be_named_and_numbers_are_labels(tmp_path):
    rows = [{"sentence": "a", "y": 1, "id": 7}, {"sentence": "b", "y": 0.0}, {"sentence": "c", "y": True}]
    found = records(tmp_path, rows, text_field="sentence", label_field="y")
    assert [row["solution"] for row in found] == ["1", "0", "True"]
    assert found[0]["id"] == "rows/7" and found[0]["labels"] == ["0", "1", "True"]


def test_labels_have_the_order_that_is_given_and_texts_may_have_none(tmp_path):
    found = records(tmp_path, [{"text": "a"}, {"text": "b"}], labels=["yes", "no"])
    assert [row["labels"] for row in found] == [["yes", "no"]] * 2
    assert not any("solution" in row for row in found)


def test_a_split_that_rows_bring_along_is_followed(tmp_path):
    rows = [row | {"split": "held_out"} for row in ROWS]
    assert {row["split"] for row in records(tmp_path, rows)} == {"held_out"}
    with pytest.raises(UserError, match=r"rows.jsonl, record 1: split 'test' is none of train, held_out"):
        records(tmp_path, [ROWS[0] | {"split": "test"}, ROWS[1]])


@pytest.mark.parametrize(
    ("rows", "p", "complaint"),
    [
        ([{"txt": "a"}], {}, r"record 1: no field 'text' \(text_field\); its fields are: txt"),
        ([{"text": 3, "label": "a"}], {}, "record 1: 'text' is 3, which is no text"),
        ([{"text": "a", "label": "x"}] * 2, {}, "'label' has the values 'x': it takes two labels to tell texts apart"),
        ([{"text": "a"}] * 2, {}, "'label' has the values none: it takes two labels"),
        ([{"text": "a", "label": "z"}], {"labels": ["x", "y"]}, "record 1: label 'z' is none of x, y"),
        ([{"text": "a", "label": str(n)} for n in range(200)], {}, "more than 100 different values of 'label'"),
    ],
)
def test_what_cannot_be_labels_is_refused(tmp_path, rows, p, complaint):
    with pytest.raises(UserError, match=complaint):
        records(tmp_path, rows, **p)


def test_a_template_has_room_for_the_text(tmp_path):
    with pytest.raises(ValueError, match="it must hold {text}, where the text goes"):
        records(tmp_path, ROWS, template="Is it?")


def test_a_family_is_a_name_that_metrics_can_have():
    assert classify.family("a b/c") == "a_b_c" and classify.family(None) == "unlabelled"


@pytest.mark.parametrize(
    ("train", "held_out", "complaint"),
    [
        (
            {"good": 9, "unlabelled": 3},
            {"good": 1, "bad": 2},
            r"mine: label 'bad' is only in the held-out part \(2 rows",
        ),
        (
            {"good": 9, "unlabelled": 3},
            {"good": 1},
            "mine: all rows to train on are 'good': nothing tells labels apart",
        ),
        ({"good": 9, "bad": 1}, {"unlabelled": 1}, None),
        ({"unlabelled": 9}, {"unlabelled": 1}, None),
    ],
)
def test_labels_that_nothing_teaches_are_refused(train, held_out, complaint):
    technique = classify.Classify(**P, source="rows.jsonl")
    kinds = {"train": Counter(train), "held_out": Counter(held_out)}
    with pytest.raises(UserError, match=complaint) if complaint else nullcontext():
        technique.require(kinds, "mine")
