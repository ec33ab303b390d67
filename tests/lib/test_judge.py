"""A judge's grades: how they are read, from what it is shown, and that nobody is asked twice."""

import pytest

from stages.lib.frame.errors import UserError
from stages.lib.sampling import judge
from stages.lib.sampling.endpoint import Client

REPLIES = [("2 + 2?", "4"), ("2 + 2?", "5"), ("Who?", "Ahab, of the Pequod")]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("7", 7),
        ("10", 10),
        ("1", 1),
        ("Grade: 8/10", 8),
        ("It has 3 faults.\n\n**6** out of 10", 6),
        ("8.5", 8),
        ("0", None),
        ("11", None),
        ("-3", None),
        ("excellent", None),
        ("", None),
    ],
)
def test_a_grade_is_the_first_number_of_the_last_line(said, expected):
    assert judge.grade(said) == expected


def test_grades_are_of_what_was_shown(answering, tmp_path):
    bodies = []

    def answer(body):
        bodies.append(body)
        text = body["messages"][0]["content"]
        return (
            "10" if "4" in text.split("[Answer]")[1].split("[Your grade]")[0] else "1" if "2 + 2" in text else "so so"
        )

    answering.answer = answer
    asks = judge.Judge(url=answering.url, wanted="the sea.", grade_tokens=5, retries=0)
    client = Client(asks, tmp_path)
    assert asks.grades(client, REPLIES) == [1.0, 0.0, 0.0]  # what says no grade is the worst
    assert {body["max_tokens"] for body in bodies} == {5} and all("the sea." in str(body) for body in bodies)
    assert asks.grades(Client(asks, tmp_path), REPLIES[:2]) == [1.0, 0.0] and len(bodies) == 3
    assert asks.grades(client, []) == []
    answering.answer = lambda body: "5"
    assert asks.grades(client, [("Who?", "Starbuck")]) == [4 / 9]


def test_who_never_says_a_grade_is_refused(answering, tmp_path):
    answering.answer = lambda body: "What a question!"
    asks = judge.Judge(url=answering.url, retries=0)
    with pytest.raises(UserError, match="says no number from 1 to 10, but for example 'What a question!'"):
        asks.grades(Client(asks, tmp_path), REPLIES)
