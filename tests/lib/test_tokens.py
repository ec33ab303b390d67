"""Rows that a model reads whose vocabulary is a part of theirs, by hand."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import tokens

WHOLE = BPE({"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, [("a", "b"), ("ab", "c")])
PART = BPE({"c": 0, "b": 1, "a": 2, "ab": 3}, [("a", "b")])
ROWS = np.array([[4, 0, 1, 2], [0, 1, 4, 4], [3, 3, 0, 0]], dtype=np.uint16)  # abc a b c, a b abc abc, ab ab a a


@pytest.fixture
def place(tmp_path):
    """place(model, tokenizer): a folder of rows with these numbers, and one of a model with that tokenizer."""

    def make(whole, part):
        for name, model in (("whole", whole), ("model", part)):
            (tmp_path / name).mkdir()
            tokenizer = Tokenizer(model)
            tokenizer.decoder = decoders.Fuse()
            tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        file = tmp_path / "whole/tokenizer.json"
        tokens.save(tmp_path / "rows", {"tokenizer": files.digest(file)}, file, train=ROWS, held_out=ROWS)
        return tmp_path / "rows", tmp_path / "model"

    return make


def test_rows_are_read_in_the_models_numbers_and_cut_where_they_get_longer(place):
    rows, model = place(WHOLE, PART)
    expected = [[3, 0, 2, 1], [2, 1, 3, 0], [3, 3, 2, 2]]  # ab c a b, a b ab c, ab ab a a
    assert tokens.held_out(rows, 5, model).tolist() == expected
    assert sorted(tokens.sample(rows, 3, 0, model).tolist()) == sorted(expected)
    assert tokens.batches(tokens.load_for(model, rows, "train"), 2)(1).tolist() == [expected[2], expected[0]]


def test_rows_of_the_models_own_tokenizer_are_not_touched(place):
    rows, model = place(WHOLE, WHOLE)
    assert tokens.held_out(rows, 2, model).tolist() == ROWS[:2].tolist()


OTHERS = {
    "a token that the rows don't know": BPE({"a": 0, "b": 1, "c": 2, "bc": 3}, [("b", "c")]),
    "no way to write a c": BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
    "unknown instead of c": BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")], unk_token="a"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_tokenizer_that_is_no_part_is_refused(place, other):
    rows, model = place(WHOLE, OTHERS[other])
    with pytest.raises(UserError, match="the vocabularies differ: .*rows has tokenizer"):
        tokens.held_out(rows, 1, model)


def test_a_tokenizer_that_splits_otherwise_is_refused(place):
    rows, model = place(WHOLE, PART)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    with pytest.raises(UserError, match="the vocabularies differ"):
        tokens.load_for(model, rows, "train")
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(model / "tokenizer.json"))
    with pytest.raises(UserError, match="the vocabularies differ"):
        tokens.load_for(model, rows, "train")
