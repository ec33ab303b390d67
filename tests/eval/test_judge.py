"""Verdicts of judges behind a real port, each of a character of its own, and win rates counted by hand."""

import pytest
from pydantic import ValidationError

from stages.eval import Beside, judge
from stages.lib.frame import params
from stages.lib.frame.errors import UserError

OWN = ["the whale is white", "no", "I do not know", "same"]
THEIRS = ["white", "no, it is not", "who knows!!", "same"]
WINS, LOSSES, TIES = 1, 1, 2  # by whichever is longer, where lengths differ


def longer(first, second):
    return "C" if abs(len(first) - len(second)) < 5 else "A" if len(first) > len(second) else "B"


@pytest.fixture
def server(answering):
    def answer(body):
        prompt = body["messages"][0]["content"]
        answering.prompts.append(prompt)
        return answering.character(*(prompt.split(f"[Answer {each}]\n")[1].split("\n\n[")[0] for each in "AB"))

    answering.prompts, answering.character, answering.answer = [], longer, answer
    return answering


def asked(server, **more):
    entry = {"models": {"x": "align/sft"}, "records": "data/x", "against": "align/dpo"}
    return judge.Judge.model_validate(entry | {"asked": {"url": server.url, "retries": 0} | more})


PROBLEMS = [{"id": str(n), "family": "chat", "prompt": f"{{question}} {n}?", "solution": "x"} for n in range(4)]


def test_the_win_rate_is_counted_by_hand(server, tmp_path):
    scores = asked(server).judged(PROBLEMS, OWN, THEIRS, tmp_path)
    found = [scores.metrics[f"judge.{each}"] for each in ("win", "loss", "tie", "unread", "requests")]
    assert found == [WINS, LOSSES, TIES, 0, 6]  # nobody is asked about two answers that are the same
    assert scores.metrics["win_rate"] == (WINS + TIES / 2) / 4
    assert scores.metrics["win_rate_low"] < 0.5 < scores.metrics["win_rate_high"]
    verdicts = [each["verdict"] for each in scores.samples["judged"]]
    assert verdicts == ["win", "loss", "tie", "tie"]
    assert all(any(text in prompt for prompt in server.prompts) for text in ("{question} 0?", *OWN[:3], *THEIRS[:3]))


def test_the_other_way_round_it_is_the_rest(server, tmp_path):
    one, other = (
        asked(server).judged(PROBLEMS, *each, tmp_path).metrics["win_rate"] for each in ((OWN, THEIRS), (THEIRS, OWN))
    )
    assert one + other == 1
    assert len(server.prompts) == 6  # the journal knows the rest


def test_who_always_likes_the_first_prefers_nobody(server, tmp_path):
    server.character = lambda first, second: "A"
    metrics = asked(server).judged(PROBLEMS, OWN, THEIRS, tmp_path).metrics
    assert (metrics["win_rate"], metrics["judge.tie"]) == (0.5, 4)


def test_what_is_no_verdict_is_counted_and_never_taken_for_one(server, tmp_path):
    server.character = lambda first, second: "A is better than B" if "whale" in first + second else "Verdict: **B**"
    metrics = asked(server).judged(PROBLEMS, OWN, THEIRS, tmp_path).metrics
    assert (metrics["judge.unread"], metrics["judge.win"], metrics["judge.tie"]) == (2, 0, 4)
    server.character = lambda first, second: "I would rather not."
    with pytest.raises(UserError, match="never says A, B or C, but for example 'I would rather not.'"):
        asked(server).judged(PROBLEMS, OWN, THEIRS, tmp_path / "anew")
    server.character = longer
    assert asked(server).judged(PROBLEMS, OWN, THEIRS, tmp_path / "anew").metrics["judge.win"] == WINS


@pytest.mark.parametrize(
    ("said", "expected"),
    [("A", "A"), (" b ", None), ("**C**.", "C"), ("I think A.\nB", "B"), ("A or B", None), ("", None), ("A. A!", "A")],
)
def test_a_letter_alone_is_a_verdict(said, expected):
    assert judge.letter(said) == expected


def test_a_model_beside_itself_ties(server, model_folder, problems, tmp_path):
    scores = asked(server, max_new_tokens=4).evaluate(model_folder, problems, Beside(model_folder, tmp_path))
    assert (scores.metrics["win_rate"], scores.metrics["judge.tie"], server.prompts) == (0.5, len(problems), [])
    few = asked(server, max_new_tokens=4, per_family=1).evaluate(model_folder, problems, Beside(model_folder, tmp_path))
    assert few.metrics["judge.tie"] == 3


def test_what_is_missing_is_said_before_work():
    with pytest.raises(ValidationError, match="against is missing: `models` are judged on `records`, beside `against`"):
        judge.Judge.model_validate({"models": {"x": "align/sft"}, "records": "data/x", "asked": {}})
    assert not judge.Judge.model_validate({"models": {}}).models
    with pytest.raises(UserError, match="eval.judge.asked.url is 'http://key@host': "):
        params.technique("eval", "judge", {"asked": {"url": "http://key@host"}})
