"""A reward model's word on replies, and what choosing by it is worth, by hand."""

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.store import records
from stages.lib.text import chat
from stages.traces import rewarded

# two problems of four replies: answer, right, score
GIVEN = {
    "a": [("4", True, 0.0), ("5", False, 2.0), ("5", False, 0.5), ("4", True, 1.0)],
    "b": [("6", False, 3.0), ("7", True, 1.0), ("7", True, 1.5), ("7", True, 1.6)],
}
ROWS = [
    {"id": f"{p}/{n}", "prompt": f"{p}?", "solution": f"#### {answer}", "liked": right, "score": score,
     "stopped": True, "tokens": [1], "family": "f"}
    for p, some in GIVEN.items() for n, (answer, right, score) in enumerate(some)
]  # fmt: skip


def make(**given):
    return rewarded.Rewarded.model_validate({"method": "rewarded", "model": "a/b", "source": "a/b"} | given)


def test_choices_by_hand(tmp_path):
    records.save(tmp_path, train=ROWS)
    assert make().measure(None, tmp_path) == {
        **{f"{name}_of_1": 5 / 8 for name in ("oracle", "best", "majority", "weighted")},
        # a: (4, 5), (5, 4); b: (6, 7), (7, 7)
        "oracle_of_2": 1.0,
        "best_of_2": 2 / 4,  # the 5 of a by 2.0, its 4 by 1.0; the 6 of b by 3.0, a 7
        "majority_of_2": 2 / 4,  # of one vote each the first one: 4 of a, 5 of a; 6, 7 and 7 of b
        "weighted_of_2": 2 / 4,
        "oracle_of_4": 1.0,
        "best_of_4": 0.0,
        "majority_of_4": 1.0,  # of a the first of two; of b 7
        "weighted_of_4": 0.0,  # of b e^3 = 20.1 for 6, 2.7 + 4.5 + 5.0 for 7; of a 7.4 + 1.6 for 5
    }


def test_who_says_nothing_has_no_vote(tmp_path):
    rows = [row | ({"stopped": False} if row["solution"] == "#### 6" else {}) for row in ROWS]
    rows[0] = rows[0] | {"solution": "no mark"}
    records.save(tmp_path, train=rows)
    said = make().measure(None, tmp_path)
    assert said["majority_of_1"] == 4 / 8 and said["majority_of_4"] == 0.5  # of a now 5


@torch.no_grad()
@pytest.mark.parametrize("size", [1, 3])
def test_scores_are_the_models_whatever_the_batch(size, taught, tokenizer, tmp_path):
    (tmp_path / "records").mkdir()
    records.save(tmp_path / "records", train=ROWS)
    found = list(make(batch_size=size).record((taught, tokenizer), tmp_path))
    for row, known in zip(found, ROWS, strict=True):
        ids = chat.chat_ids(tokenizer, row["prompt"], row["solution"])
        expected = taught(input_ids=torch.tensor([ids])).logits[0, -1, ids[-1]].item()
        assert row["score"] == pytest.approx(expected, abs=1e-4) and row["id"] == known["id"]


@torch.no_grad()
@pytest.mark.parametrize("by", ["min", "product"])
def test_a_reply_is_scored_by_its_steps(by, taught, tokenizer, tmp_path):
    rows = [ROWS[0] | {"solution": "so\nso it is\n#### 4"}, ROWS[1]]
    (tmp_path / "records").mkdir()
    records.save(tmp_path / "records", train=rows)
    for found, row in zip(make(by=by).record((taught, tokenizer), tmp_path), rows, strict=True):
        ids = chat.chat_ids(tokenizer, row["prompt"], row["solution"])
        logits = taught(input_ids=torch.tensor([ids])).logits[0, :, ids[-1]]
        begin = len(chat.prompt_ids(tokenizer, row["prompt"]))
        breaks = [n for n in range(begin, len(ids) - 1) if "\n" in tokenizer.decode([ids[n]])]
        breaks = breaks[: row["solution"].count("\n")]  # the template may end with one more
        scores = logits[[*breaks, len(ids) - 1]]
        assert len(scores) == (3 if row is rows[0] else 1)
        expected = scores.min() if by == "min" else scores.sigmoid().log().sum()
        assert found["score"] == pytest.approx(expected.item(), abs=1e-4)


def test_other_records_and_long_replies_are_refused(taught, tokenizer, tmp_path):
    (tmp_path / "records").mkdir()
    records.save(tmp_path / "records", train=[{"id": "0", "prompt": "?", "solution": "!"}])
    with pytest.raises(UserError, match="its records have no 'liked': take the replies of traces/rollouts"):
        next(make().record((taught, tokenizer), tmp_path))
    records.save(tmp_path / "records", train=[ROWS[0] | {"prompt": "so " * 40}])
    with pytest.raises(UserError, match="'a/0' is longer than context 16: give more"):
        next(make(context=16).record((taught, tokenizer), tmp_path))
