"""Labels of steps: by what comes out behind them, and by the worked solution."""

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.store import records
from stages.lib.text import chat
from stages.traces import steps

KNOWN = "2 + 3 = 5\n5 + 4 = 9\n#### 9"
PROMPT = "2 + 3 + 4?"


def make(**given):
    entry = {"method": "steps", "model": "a/b", "source": "a/b", "group": 6, "max_new_tokens": 8, "batch_size": 2}
    return steps.Steps.model_validate(entry | given)


@pytest.fixture
def source(tokenizer, tmp_path):
    """Replies: as known, wrong in the second step, right by another way, cut off."""
    said = [KNOWN, "2 + 3 = 5\n5 + 4 = 8\n#### 8", "3 + 4 = 7\n#### 9", "2 + 3 ="]
    rows = []
    for number, text in enumerate(said):
        stopped = number < 3
        tokens = chat.chat_ids(tokenizer, PROMPT, text)[len(chat.prompt_ids(tokenizer, PROMPT)) :]
        rows.append({"id": f"a/{number}", "prompt": PROMPT, "solution": text, "known": KNOWN, "scorer": "pattern",
                     "pattern": "#### 9", "liked": text[-1] == "9", "stopped": stopped, "tokens": tokens})  # fmt: skip
    (tmp_path / "records").mkdir()
    records.save(tmp_path / "records", train=rows)
    return tmp_path


def test_by_the_worked_solution(source, taught, tokenizer):
    rows = list(make(by="worked").record((taught, tokenizer), source))
    assert [(row["id"], row["steps"]) for row in rows] == [
        ("a/0", [1, 1, 1]),
        ("a/1", [1, 0, 0]),
        ("a/2", [0, 0]),
    ]


def test_by_what_comes_out(source, asked, taught, tokenizer, monkeypatch):
    """The model ends every talk with "#### Yes": where that is right every step is, where it is wrong none is but that
    of a reply which is right already."""
    rows = list(make(temperature=0.1).record((taught, tokenizer), source))
    assert [row["steps"] for row in rows] == [[0, 0, 1], [0, 0, 0], [0, 1]]
    every = records.load(source / "records", "train")
    rows = [row | {"pattern": "Yes"} for row in every]
    records.save(source / "records", train=rows)
    assert [row["steps"] for row in make(temperature=0.1).record((taught, tokenizer), source)] == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 1],
    ]


def test_beginnings_are_tried_once_and_are_the_models_tokens(source, taught, tokenizer):
    rows = records.load(source / "records", "train")[:3]
    found = make().tried(taught, tokenizer, rows)
    texts = [tokenizer.decode(begun, skip_special_tokens=True).partition(PROMPT)[2].strip() for begun in found]
    assert sorted(text.split("\n")[-1] for text in texts) == ["2 + 3 = 5", "3 + 4 = 7", "5 + 4 = 8", "5 + 4 = 9"]
    torch.manual_seed(5)
    assert make().tried(taught, tokenizer, rows) == found and torch.initial_seed() == 5


def test_what_is_measured(source, taught, tokenizer, tmp_path):
    rows = list(make(temperature=0.1).record((taught, tokenizer), source))
    (tmp_path / "made").mkdir()
    records.save(tmp_path / "made", train=rows)
    assert make().measure(None, tmp_path / "made") == {
        "steps_per_reply": 8 / 3,
        "right": 2 / 8,
        "agreement_with_worked": (1 + 2 + 1) / 8,
    }


def test_replies_that_were_all_cut_off_are_refused(source, taught, tokenizer):
    records.save(source / "records", train=records.load(source / "records", "train")[3:])
    with pytest.raises(UserError, match="no reply in it ended by itself"):
        next(make().record((taught, tokenizer), source))


def test_other_records_are_refused(taught, tokenizer, tmp_path):
    (tmp_path / "records").mkdir()
    records.save(tmp_path / "records", train=[{"id": "0", "prompt": "?", "solution": "!"}])
    with pytest.raises(UserError, match="its records have no 'liked': take the replies of traces/rollouts"):
        next(make().record((taught, tokenizer), tmp_path))
