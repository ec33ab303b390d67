"""What a reply is worth, case by case, and that no way around an answer is paid."""

import numpy as np
import pytest
from pydantic import ValidationError

from stages.lib.sampling.rewards import Reply, Rewards

ADD = {"id": "0", "family": "f", "prompt": "2 + 2?", "solution": "#### 4", "scorer": "number"}
SAY = {"id": "1", "family": "f", "prompt": "Say so.", "solution": "so"}
SUM = {
    "id": "2",
    "family": "chain_sum",
    "prompt": "2 + 2 =",
    "solution": "#### 4",
    "entry": {"question": "2 + 2 =", "answer": "4", "metadata": {"source_dataset": "chain_sum", "source_index": 0}},
}


def worth(problem, text, room=10, tokens=4, stopped=True, alone=True, score=0.0, grade=0.0, **weights):
    given = dict.fromkeys(("correct", "lenient", "format", "short", "random", "model", "judge"), 0.0) | weights
    dice = np.random.default_rng(0)
    return Rewards(**given).of(problem, Reply(text, tokens, stopped, alone), room, dice, score, grade).reward


@pytest.mark.parametrize(
    ("problem", "text", "correct", "lenient", "format"),
    [
        (SUM, "2 + 2 = 4\n#### 4", 1, 1, 1),
        (SUM, "2 + 2 = 4", 0, 1, 0),
        (SUM, "It is 4.", 0, 1, 0),
        (SUM, "4 it is", 0, 0, 0),
        (SUM, "#### 5", 0, 0, 1),
        (SUM, "####", 0, 0, 0),
        (ADD, "I think 4", 1, 1, 0),
        (SAY, " So", 1, 1, 0),
        (SAY, "I say: so", 0, 1, 0),
        (SAY, "no", 0, 0, 0),
    ],
)
def test_of_answers(problem, text, correct, lenient, format):
    assert worth(problem, text, correct=2.0) == 2 * correct
    assert worth(problem, text, lenient=0.5) == 0.5 * lenient
    assert worth(problem, text, format=0.25) == 0.25 * format
    assert worth(problem, text, short=1.0) == pytest.approx(correct * 0.6)
    assert worth(problem, text, correct=1.0, format=0.25, short=1.0) == pytest.approx(1.6 * correct + 0.25 * format)


@pytest.mark.parametrize(
    "reply",
    [
        {"text": "#### 4", "stopped": False},
        {"text": "#### 4", "alone": False},
        {"text": " \n"},
        {"text": "#### 5\n#### 4"},
        {"text": ""},
    ],
)
def test_of_what_is_no_answer(reply):
    every = {"correct": 1.0, "lenient": 1.0, "format": 1.0, "short": 1.0, "random": 1.0, "model": 1.0, "judge": 1.0}
    assert worth(ADD, **reply, **every, score=9.0, grade=1.0) == 0
    assert worth(ADD, "#### 4", **every) >= 3.6


def test_of_a_coin():
    dice, coin = np.random.default_rng(3), Rewards(correct=0.0, random=1.0)
    tossed = [coin.of(SAY, Reply(text, 4, True, True), 10, dice).reward for text in ("so", "no") * 200]
    assert set(tossed) == {0.0, 1.0} and 0.4 < np.mean(tossed) < 0.6
    assert np.mean(tossed[::2]) == pytest.approx(np.mean(tossed[1::2]), abs=0.15)


def test_of_a_reward_models_word():
    """The likelihood that it wins against a reply of score 0, so never below a reply that is worth nothing."""
    for score, expected in ((0.0, 0.5), (2.0, 0.880797), (-2.0, 0.119203), (-40.0, 0.0)):
        assert worth(ADD, "#### 5", score=score, model=2.0) == pytest.approx(2 * expected, abs=1e-5)
    assert Rewards().of(ADD, Reply("#### 4", 4, True, True), 10, np.random.default_rng(0), score=-9.0) == (1.0, True)
    assert Rewards().of(ADD, Reply("#### 4", 4, False, True), 10, np.random.default_rng(0)) == (0.0, False)


def test_of_a_judges_grade():
    assert worth(ADD, "#### 5", grade=0.75, judge=2.0, format=1.0) == 2.5


def test_something_is_rewarded():
    with pytest.raises(ValidationError, match="all weights are 0"):
        Rewards(correct=0.0)
