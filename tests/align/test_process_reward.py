"""Reward models of steps: the formula step by step, and which rows they can learn from."""

from contextlib import nullcontext

import pytest
import torch

from stages.align import Given, process_reward
from stages.lib.frame.errors import UserError
from stages.lib.text import chat

PARENTS = dict.fromkeys(("model", "problems", "examples"), "a/b")
ROWS = [
    {"id": "0", "prompt": "2 + 3 + 4?", "solution": "2 + 3 = 5\n5 + 4 = 9\n#### 9", "steps": [1.0, 0.75, 1.0]},
    {"id": "1", "prompt": "7?", "solution": "#### 7", "steps": [0.0]},
    {"id": "2", "prompt": "1 + 1?", "solution": "1 + 1 = 3\n\n#### 3", "steps": [0.25, 0.0]},
]


def make(**given):
    training = {"steps": 1, "batch_size": 3, "precision": "float32"}
    entry = {"method": "process_reward", **PARENTS, "training": training, "context": 64} | given
    return process_reward.ProcessReward.model_validate(entry)


def scores(model, tokenizer, row):
    """Text by text: the logit of the reply's last token, behind each line of it."""
    ids = chat.chat_ids(tokenizer, row["prompt"], row["solution"])
    begin = len(chat.prompt_ids(tokenizer, row["prompt"]))
    logits = model(input_ids=torch.tensor([ids])).logits[0, :, ids[-1]]
    said = [tokenizer.decode(ids[begin : place + 1]) for place in range(begin, len(ids))]
    ends = [
        begin + place for place in range(len(said) - 1) if said[place].endswith("\n") and said[place + 1][-1] != "\n"
    ]
    assert len(ends) + 1 == len(row["steps"])
    return logits[[*ends, len(ids) - 1]]


@pytest.mark.parametrize("hard", [True, False])
def test_it_is_cross_entropy_of_every_step(hard, moved, tokenizer):
    p = make(hard=hard)
    value, measures = p.loss(moved, lambda: nullcontext(moved), p.batches(Given(tokenizer, [], ROWS, moved))(0))
    every = [(score, y) for row in ROWS for score, y in zip(scores(moved, tokenizer, row), row["steps"], strict=True)]
    likely = [(torch.sigmoid(score), float(y > 0) if hard else y) for score, y in every]
    by_hand = -sum(y * q.log() + (1 - y) * (1 - q).log() for q, y in likely) / 6
    torch.testing.assert_close(value, by_hand, atol=1e-5, rtol=1e-5)
    assert measures["accuracy"].item() == pytest.approx(sum((q > 0.5) == (y > 0.5) for q, y in likely) / 6)
    gradients = zip(*(torch.autograd.grad(each, list(moved.parameters())) for each in (value, by_hand)), strict=True)
    for found, wanted in gradients:
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-3)


def test_what_it_cannot_learn_from_is_refused(tokenizer):
    with pytest.raises(UserError, match="must say of every step whether it is right: traces/steps makes such"):
        make().batches(Given(tokenizer, [], [{"id": "0", "prompt": "?", "solution": "4", "liked": True}], None))
    with pytest.raises(UserError, match="'1' has 2 steps, but 1 in this model's tokens"):
        make().batches(Given(tokenizer, [], [ROWS[0], ROWS[1] | {"steps": [1.0, 0.0]}], None))
    with pytest.raises(UserError, match="none of 1 replies fits into a context of 16"):
        make(context=16).batches(Given(tokenizer, [], ROWS[:1], None))
