"""Reward models: TRL's loss, scores text by text, and what is said of held-out pairs."""

import copy
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from stages.align import Given, reward
from stages.lib.text import chat

PARENTS = dict.fromkeys(("model", "problems", "examples"), "a/b")
PAIRS = [
    {"id": str(n), "prompt": f"Say {'so ' * n}{n}", "chosen": "so " * n + f"#### {n}", "rejected": f"#### {n + 1}"}
    for n in range(4)
]
TRAINING = {"steps": 1, "batch_size": 4, "precision": "float32"}


def make(**given):
    return reward.Reward.model_validate({"method": "reward", **PARENTS, "training": TRAINING} | given)


def scores(model, tokenizer, side):
    """Text by text, without a batch: the logit of the last token where the next one would come."""
    found = []
    for pair in PAIRS:
        ids = chat.chat_ids(tokenizer, pair["prompt"], pair[side])
        found.append(model(input_ids=torch.tensor([ids])).logits[0, -1, ids[-1]])
    return torch.stack(found)


@pytest.mark.parametrize("centre", [0.0, 0.01, 1.0])
def test_it_is_trls(centre, tiny, tokenizer):
    from trl import RewardTrainer

    p = make(centre=centre)
    value, measures = p.loss(tiny, lambda: nullcontext(tiny), p.batches(Given(tokenizer, [], PAIRS, tiny))(0))
    every = torch.cat([scores(tiny, tokenizer, side) for side in ("chosen", "rejected")])
    settings = SimpleNamespace(
        model=SimpleNamespace(training=False), args=SimpleNamespace(center_rewards_coefficient=centre),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
    )  # fmt: skip
    expected = RewardTrainer.compute_loss(settings, lambda **_: SimpleNamespace(logits=every[:, None]), {})
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    weights = list(tiny.parameters())
    for found, wanted in zip(*(torch.autograd.grad(each, weights) for each in (value, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-3)
    ahead = torch.sub(*every.chunk(2))
    assert measures["score_margin"].item() == pytest.approx(ahead.mean().item(), abs=1e-5)
    assert measures["accuracy"].item() == (ahead > 0).float().mean().item()


def test_what_is_said_of_held_out_pairs(tiny, moved, tokenizer):
    found = make().compare(tiny, moved, tokenizer, PAIRS)
    for when, model in (("before", tiny), ("after", moved)):
        ahead = scores(model, tokenizer, "chosen") - scores(model, tokenizer, "rejected")
        assert found[f"score_margin_{when}"] == pytest.approx(ahead.mean().item(), abs=1e-4)
        assert found[f"score_accuracy_{when}"] == (ahead > 0).float().mean().item()
    assert make().compare(tiny, copy.deepcopy(tiny), tokenizer, []) == {}
