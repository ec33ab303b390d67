"""Which samples are kept, by hand: a teacher whose replies are written down here."""

import pytest

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
