"""Our use of TRL gives the paper's loss: -log sigmoid(beta * margin over the reference), eq. 7, token by token."""

import copy

import pytest
import torch
import torch.nn.functional as F

from stages.align import dpo
from stages.lib.text import problems

PAIR = {"id": "0", "family": "f", "prompt": "Say 4", "chosen": "#### 4", "rejected": "#### 5"}


@torch.no_grad()
def log_probability(model, tokenizer, reply):
    ids, begin = (
        problems.chat_ids(tokenizer, PAIR["prompt"], reply),
        len(problems.prompt_ids(tokenizer, PAIR["prompt"])),
    )
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]] for t in range(begin, len(ids)))


def test_second_step_has_the_loss_of_the_paper(tiny, tokenizer, tmp_path):
    """At the first step policy and reference are equal, so the loss is log 2; after it, it is the formula's."""
    reference, curve = copy.deepcopy(tiny), []
    settings = {"batch_size": 1, "lr": 1e-3, "warmup": 0, "lr_floor": 1, "weight_decay": 0, "precision": "float32"}

    def run(steps, folder):
        model, curve = copy.deepcopy(reference), []
        p = dpo.Params(method="dpo", model="a/b", problems="a/b", examples="a/b", training=settings | {"steps": steps})
        dpo.align(model, tokenizer, [], [PAIR], p, curve, folder)
        return model, curve

    after_one, _ = run(1, tmp_path / "1")
    _, curve = run(2, tmp_path / "2")
    margin = sum(
        sign * (log_probability(model, tokenizer, PAIR[side]))
        for side, s in (("chosen", 1), ("rejected", -1))
        for model, sign in ((after_one, s), (reference, -s))
    )
    assert curve[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert curve[1]["loss"] == pytest.approx(-F.logsigmoid(0.1 * margin).item(), abs=1e-3)
