"""Which samples are kept, by hand: a teacher whose replies are written down here."""

import pytest

from stages.lib.frame.errors import UserError
from stages.traces import solutions
from stages.traces.parts import answers

PARENTS = dict.fromkeys(("model", "source"), "a/b")


def teacher(said):
    """Replies by prompt, one an attempt; remembers what it was asked."""
    calls = []

    def ask(prompts, attempt):
        calls.append((attempt, prompts))
        return [said[prompt][attempt] for prompt in prompts]

    return ask, calls


@pytest.fixture
def rows(asked):
    """Two problems whose answer is Yes, one whose answer is No."""
    yes, no = ([row for row in asked if row["answer"] == answer] for answer in ("Yes", "No"))
    return [row | {"prompt": name} for row, name in zip([*yes[:2], no[0]], "abc", strict=True)]


def kept(rows, said, choose, attempts=3):
    ask, calls = teacher(said)
    technique = solutions.Solutions(method="solutions", **PARENTS, count=1, choose=choose, attempts=attempts)
    out = list(technique.kept(rows, ask))
    return {row["prompt"]: (row["solution"], row["attempt"], row.get("votes")) for row in out}, calls, out


Y, N = "#### Yes", "#### No"


def test_the_verifier_keeps_the_first_right_one_and_asks_no_more(rows):
    out, calls, records = kept(rows, {"a": [N, f"so {Y}", Y], "b": [Y, N, N], "c": [Y, "?", "####"]}, "verifier")
    assert out == {"a": (f"so {Y}", 1, None), "b": (Y, 0, None)}
    assert calls == [(0, ["a", "b", "c"]), (1, ["a", "c"]), (2, ["c"])]
    assert {row["chosen_by"] for row in records} == {"verifier"}


def test_self_consistency_keeps_the_majority_right_or_wrong(rows):
    said = {"a": [N, f"so {Y}", Y], "b": ["?", N, Y], "c": ["?", "", "####"]}
    out, calls, records = kept(rows, said, "self_consistency")
    assert out == {"a": (f"so {Y}", 1, 2), "b": (N, 1, 1)}  # of one vote each, the first
    assert [attempt for attempt, _ in calls] == [0, 1, 2]
    assert {row["chosen_by"] for row in records} == {"self_consistency"}


def test_numbers_and_json_are_chosen_by_what_they_say():
    """By a record's scorer; votes on what is written alike would be one each."""
    rows = [
        {"id": "a", "prompt": "a", "solution": "1000", "scorer": "number"},
        {"id": "b", "prompt": "b", "solution": '{"x": 1}', "scorer": "json"},
        {"id": "c", "prompt": "c", "solution": "yes", "scorer": "pattern", "pattern": "(?i)yes"},
    ]
    said = {"a": ["7", "1,000", "so 1000.0"], "b": ['{"x": 2}', '{"x": 1.0}', '{ "x":1 }'], "c": ["no", "no", "Yes!"]}
    right, _, _ = kept(rows, said, "verifier")
    assert right == {"a": ("1,000", 1, None), "b": ('{"x": 1.0}', 1, None), "c": ("Yes!", 2, None)}
    voted, _, _ = kept(rows[:2], said, "self_consistency")
    assert voted == {"a": ("1,000", 1, 2), "b": ('{"x": 1.0}', 1, 2)}


def test_prompts_of_unpaired_preferences_can_be_answered_but_not_verified():
    row = {"id": "a", "prompt": "a", "solution": "bad", "liked": False}
    _, _, [answered] = kept([row], {"a": ["good"] * 3}, "first")
    assert answered["solution"] == "good" and "liked" not in answered
    with pytest.raises(UserError, match="record 'a' is a reply that was liked or not"):
        kept([row], {"a": ["good"] * 3}, "verifier")


def test_first_keeps_the_first_that_says_anything(rows):
    out, calls, _ = kept(rows, {"a": [N, Y, Y], "b": ["", "hm", Y], "c": ["", " ", ""]}, "first")
    assert out == {"a": (N, 0, None), "b": ("hm", 1, None)}
    assert calls == [(0, ["a", "b", "c"]), (1, ["b", "c"]), (2, ["c"])]


def test_batches_are_a_seeded_choice(asked):
    def ids(seed):
        return [[row["id"] for row in batch] for batch in answers.drawn(asked, seed, count=13, batch_size=5)]

    assert ids(0) == ids(0) != ids(1)
    assert [len(batch) for batch in ids(0)] == [5, 5, 3]
    assert len({each for batch in ids(0) for each in batch}) == 13
