"""Worked solutions, by hand and by reasoning-gym's own scorer; pairs by the same."""

from pathlib import Path

import pytest

from stages.data import problems
from stages.data.parts import worked
from stages.lib.frame.errors import UserError
from stages.lib.text import problems as tasks

WORKED = Path("stages/data/parts/worked.py")
FAMILIES = {
    "chain_sum": {"min_terms": 2, "max_terms": 4, "max_digits": 2},
    "gcd": {"max_value": 90},
    "leg_counting": {"max_animals": 3, "max_instances": 9},
    "spell_backward": {"max_word_len": 7},
    "letter_counting": {"min_words": 1, "max_words": 4},
    "number_filtering": {"max_numbers": 5, "max_decimals": 0},
    "count_bits": {"max_n": 500},
    "word_sequence_reversal": {},
}


@pytest.fixture(scope="module")
def rows():
    technique = problems.Problems(method="problems", source="x", licence="none", families=FAMILIES, per_family=30)
    return list(technique.records(WORKED))


def test_every_worked_solution_gets_full_marks(rows):
    assert {row["family"] for row in rows} == set(FAMILIES)
    assert [row["id"] for row in rows if not tasks.correct(row, row["solution"])] == []


def test_a_wrong_or_missing_answer_does_not(rows):
    assert not tasks.correct(rows[0], "#### 123456")
    assert tasks.score(rows[0], rows[0]["answer"]) == 0  # never says which is the answer


def test_a_solution_is_its_steps_and_its_answer(rows):
    for row in rows:
        assert tasks.extract(row["solution"]) == row["answer"]
        assert tasks.solution(tasks.steps(row["solution"]), row["answer"]) == row["solution"]


def test_steps_by_hand():
    assert worked.chain_sum({"metadata": {"expression": "4 - 1 - 7"}}) == "4 - 1 = 3\n3 - 7 = -4\n"
    assert worked.gcd({"metadata": {"numbers": [12, 18]}}) == "18 % 12 = 6\n12 % 6 = 0\n"
    legs = {"metadata": {"animals": {"dog": 2, "spider": 1}}}
    assert worked.leg_counting(legs) == "2 * 4 = 8\n1 * 8 = 8\n8 + 8 = 16\n"
    assert worked.spell_backward({"metadata": {"word": "sun"}}) == "s u n\nn u s\n"


def test_every_equation_in_the_steps_is_true(rows):
    for row in rows:
        for line in row["solution"].splitlines():
            left, equals, right = line.partition(" = ")
            if equals and row["family"] in ("chain_sum", "gcd"):
                assert eval(left) == int(right), line  # noqa: S307  (digits and operators that we wrote)


def test_unknown_family_and_setting_are_refused():
    def first(families):
        technique = problems.Problems(method="problems", source="x", licence="none", families=families, per_family=5)
        return next(technique.records(WORKED))

    with pytest.raises(UserError, match="reasoning-gym has no family 'chain_some'.*chain_sum"):
        first({"chain_some": {}})
    with pytest.raises(UserError, match="'gcd' cannot be made with"):
        first({"gcd": {"max_valu": 3}})
