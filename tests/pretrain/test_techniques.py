"""What every pretraining technique must hold. A new file in stages/pretrain/ is picked up here."""

from functools import partial

import pytest
import torch

from stages.lib.frame import files, params
from stages.lib.training import loop
from stages.lib.training.config import Training


@pytest.fixture(params=params.techniques("pretrain"))
def technique(request, model_folder):
    name = request.param
    given = {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "ffn": 128}
    if name == "state_space":
        given = {"hidden": 64, "layers": 2, "head_dim": 32, "state": 8}
    if name == "pretrained":
        given = {"external": {"source": str(model_folder), "sha256": files.digest(model_folder)}}
    kind = params.technique_class("pretrain", name)
    return kind.model_validate({"method": name, "tokens": "tokenize/bpe", **given})


@pytest.fixture
def build(technique, tokenizer):
    return lambda: technique.build(tokenizer)


def test_the_same_params_give_the_same_weights(build):
    assert all(torch.equal(a, b) for a, b in zip(build().parameters(), build().parameters(), strict=True))


def test_it_learns_one_batch_by_heart(technique, build, rows, tmp_path):
    model, curve = build(), []
    p = Training(steps=40, batch_size=4, lr=5e-3, precision="float32")
    loop.fit(model, lambda _index: rows[:4], partial(technique.loss, model), p, curve, tmp_path / "c")
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]


def test_loss_is_the_cross_entropy_of_each_next_token(technique, build, rows):
    model, ids = build().eval(), rows[:2, :8]
    with torch.no_grad():
        log_p = model(input_ids=ids).logits.log_softmax(-1)
        by_hand = -sum(log_p[b, t, ids[b, t + 1]] for b in range(2) for t in range(7)) / 14
        torch.testing.assert_close(technique.loss(model, ids), by_hand)
