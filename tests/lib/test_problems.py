"""Scores of answers by hand: numbers, JSON, regular expressions, and what has no scorer of its own."""

import re

import pytest

from stages.lib.frame.errors import UserError
from stages.lib.text import problems


def score(scorer, known, said, **more):
    record = {"id": "a/0", "solution": known, **({"scorer": scorer} if scorer else {}), **more}
    return problems.score(record, said)


@pytest.mark.parametrize(
    ("known", "said", "right"),
    [
        ("1000", "It is 1,000.", True),
        ("-3.50", "that makes -3.5", True),
        ("12 %", "12%", True),
        ("$5", "5 dollars", True),
        ("-$5", "$5", False),
        ("7", "10-3=7", True),
        ("-3", "10-3", False),  # a minus behind a digit subtracts
        ("\u22124", "-4", True),  # U+2212, as typesetters write it
        ("1,234,567.25", "1234567.250", True),
        ("200", "2e2", True),
        (".5", "0.50", True),
        ("0.1", "0.1000000000000000055511151231257827", False),  # a decimal, not the float beside it
        ("6 * 7 = 42\n#### 42", "42", True),
        ("42", "6 * 7 = 42 of 50\n#### 42", True),
        ("42", "#### 41 and not 42 or 41", False),
        ("42", "42 ####", False),  # it says that it answers, and doesn't
        (r"so \boxed{42}", "It is 42", True),
        ("42", r"\boxed{42}, by 3 steps", True),
        ("42", "42 apples, of 50", False),  # the last number counts
        ("42", "none", False),
        ("42", "", False),
        ("none", "none", False),
    ],
)
def test_the_last_number_is_compared_as_a_decimal(known, said, right):
    assert score("number", known, said) == float(right)
    assert problems.correct({"id": "a/0", "scorer": "number", "solution": known}, said) == right


def test_numbers_are_told_from_texts_with_numbers():
    numbers = ["42", " 1,000 ", "-3.50", "12 %", "$5", "5 €", "42.", "2e-3", "steps: 3\n#### 42", r"$\boxed{42}$"]
    texts = ["42 apples", "3-4", "1/2", "10:30", "3,5", "1.2.3", "", "####", "four", "555-1234", "#### x", r"\boxed{x}"]
    assert [text for text in numbers if not problems.is_number(text)] == []
    assert [text for text in texts if problems.is_number(text)] == []


KNOWN = '{"name": "Ann Lee", "age": 31, "tags": ["a", "b"], "left": null}'


@pytest.mark.parametrize(
    ("said", "share"),
    [
        (KNOWN, 1),
        ('{"left": null, "tags": ["A", " b"], "age": 31.0, "name": "ann  lee"}', 1),
        ('{"name": "Ann", "age": 31, "tags": ["a", "b"], "left": null}', 3 / 4),
        ('{"name": "Ann Lee", "age": "31", "tags": ["b", "a"], "left": null}', 2 / 4),  # a text, another order
        ('{"name": "Ann Lee", "age": 31}', 2 / 4),
        ('{"name": "Ann Lee", "age": 31, "tags": ["a", "b"], "left": null, "invented": 1}', 4 / 5),
        ('{"name": "Ann Lee", "age": true, "tags": [], "left": false}', 1 / 4),
        (f"Here: {KNOWN}", 0),
        ('{"name": "Ann Lee"', 0),
        ('["Ann Lee", 31]', 0),
        ("", 0),
        ('{"age": NaN}', 0),
        ('{"age": 1e99999999999999999999}', 0),
        ('{"tags": ' + "[" * 100_000, 0),
        ('{"tags": ' + "[" * 900 + "]" * 900 + "}", 0),
    ],
)
def test_json_is_scored_by_the_share_of_its_fields(said, share):
    assert score("json", KNOWN, said) == pytest.approx(share)
    assert problems.correct({"id": "a/0", "scorer": "json", "solution": KNOWN}, said) == (share == 1)


def test_true_is_not_one_and_objects_are_compared_within():
    assert score("json", '{"a": 1}', '{"a": true}') == 0
    assert score("json", '{"a": {"b": 1, "c": "X"}}', '{"a": {"c": "x", "b": 1.0}}') == 1
    assert score("json", '{"a": 0.1}', '{"a": 0.10}') == 1 and score("json", '{"a": 0}', '{"a": -0.0}') == 1


@pytest.mark.parametrize("pattern", [r"\b4\b", "^four$", r"(?i)FOUR", r"(\d)\1", "", r"[a-z]+\s"])
@pytest.mark.parametrize("said", ["4", "It is 4.", "44", "four", "Four", "It is\nfour"])
def test_a_pattern_is_found_where_re_finds_it(pattern, said):
    assert score("pattern", "4", said, pattern=pattern) == float(re.search(pattern, said) is not None)


def test_a_pattern_that_takes_for_ever_is_given_up_and_named(monkeypatch, capsys):
    monkeypatch.setattr(problems, "PATIENCE", 0.05)
    assert score("pattern", "", "a" * 60 + "b", pattern="^(a|aa)+$") == 0
    assert "record 'a/0': its pattern '^(a|aa)+$' took over 0.05 s" in capsys.readouterr().out


def test_without_a_scorer_the_words_must_be_the_same():
    assert score(None, "42 apples", " 42  Apples") == 1 and score(None, "42", "It is 42") == 0


def test_a_scorer_that_fails_is_named():
    broken = {"id": "mine/3", "family": "chain_sum", "prompt": "?", "solution": "#### 4", "entry": {}}
    with pytest.raises(
        UserError, match="record 'mine/3': reasoning-gym's scorer of chain_sum fails on its own answer: "
    ):
        problems.score(broken, "#### 4")
    assert problems.score(broken, "no mark") == 0


def test_an_answer_that_a_scorer_cannot_read_is_wrong():
    from reasoning_gym import create_dataset

    for family, rubbish in (("prime_factorization", "-"), ("boxnet", "4"), ("game_of_life", "{}")):
        entry = create_dataset(family, size=1, seed=1)[0]
        problem = {"id": "0", "family": family, "prompt": "?", "solution": entry["answer"], "entry": entry}
        assert problems.score(problem, f"#### {rubbish}") == 0
        assert problems.score(problem, f"#### {entry['answer']}") == (0 if entry["answer"] is None else 1)


def test_a_reply_that_was_liked_or_not_is_no_answer():
    with pytest.raises(UserError, match="record 'a/0' is a reply that was liked or not; no answer is known"):
        score(None, "42", "42", liked=True)


def test_votes_are_alike_where_the_scorer_makes_no_difference():
    def votes(scorer, *said):
        return [problems.vote({"id": "a/0", "solution": "", "scorer": scorer}, text) for text in said]

    assert len(set(votes("number", "1,000", "It is 1000.0", "#### 1e3", r"\boxed{1000}"))) == 1
    assert votes("number", "0", "-0.00", "none", "2.50") == ["0", "0", None, "2.5"]
    assert len(set(votes("json", '{"a": 1, "b": "X"}', '{"b":"x","a":1.0}'))) == 1
    assert votes("json", "3", "{") == [None, None]
    assert votes(None, "so #### Yes", "Yes") == ["Yes", None]
