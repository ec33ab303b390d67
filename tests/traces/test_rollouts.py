"""Rollouts: the model's own replies, tokens and probabilities, and what alignment techniques make of them."""

import pytest
import torch

from stages.align import Given, dpo, kto, sft
from stages.lib.frame.errors import UserError
from stages.lib.store import records
from stages.lib.text import chat, packing, problems
from stages.traces import rollouts

PARENTS = {"model": "a/b", "problems": "a/b", "examples": "a/c", "context": 128}
TRAINING = {"steps": 1, "batch_size": 4}


def make(**given):
    usual = {"count": 10, "group": 4, "batch_size": 8, "temperature": 1.5, "max_new_tokens": 8}
    entry = {"method": "rollouts", "model": "a/b", "source": "a/b"} | usual | given
    return rollouts.Rollouts.model_validate(entry)


@pytest.fixture
def source(asked, tmp_path):
    (tmp_path / "records").mkdir()
    records.save(tmp_path / "records", train=asked)
    return tmp_path


@pytest.fixture
def rows(source, taught, tokenizer):
    return list(make().record((taught, tokenizer), source))


@torch.no_grad()
def test_tokens_and_probabilities_are_the_models(rows, asked, taught, tokenizer):
    assert len(rows) == 40 and len({row["id"] for row in rows}) == 40
    known = {row["id"]: row for row in asked}
    for row in rows:
        problem = known[row["id"].rpartition("/")[0]]
        assert row["prompt"] == problem["prompt"]
        asked_ids = chat.prompt_ids(tokenizer, row["prompt"])
        log_p = (taught(input_ids=torch.tensor([asked_ids + row["tokens"]])).logits[0] / 1.5).log_softmax(-1)
        each = [log_p[len(asked_ids) - 1 + place, token].item() for place, token in enumerate(row["tokens"])]
        assert row["log_probabilities"] == pytest.approx(each, abs=2e-4)
        assert row["stopped"] == (row["tokens"][-1] in chat.stops(tokenizer)) and len(row["tokens"]) <= 8
        assert row["known"] == problem["solution"]
        assert row["solution"] == tokenizer.decode(row["tokens"], skip_special_tokens=True)
        assert row["liked"] == (row["stopped"] and problems.correct(problem, row["solution"]))
        assert row["reward"] == float(row["liked"])
    assert 0 < sum(row["liked"] for row in rows) < 40


def test_what_is_measured(rows, tmp_path):
    records.save(tmp_path, train=rows)
    said = make().measure(None, tmp_path)
    groups = [rows[first : first + 4] for first in range(0, 40, 4)]
    assert said["right"] == sum(row["liked"] for row in rows) / 40
    assert said["right_in_group"] == sum(any(row["liked"] for row in group) for group in groups) / 10
    assert said["live"] == sum(len({row["reward"] for row in group}) > 1 for group in groups) / 10
    assert said["cut_off"] == pytest.approx(sum(not row["stopped"] for row in rows) / 40)
    assert said["tokens_per_reply"] == sum(len(row["tokens"]) for row in rows) / 40


def test_the_seed_and_the_weights_of_rewards_count(source, taught, tokenizer):
    plain, other, random = (
        list(make(**given).record((taught, tokenizer), source))
        for given in ({}, {"seed": 1}, {"rewards": {"correct": 0, "random": 2}})
    )
    assert [row["tokens"] for row in plain] != [row["tokens"] for row in other]
    assert {row["reward"] for row in random} == {0.0, 2.0}
    with pytest.raises(ValueError, match="batch_size 8 is no multiple of group 3"):
        make(group=3)
    with pytest.raises(ValueError, match="rewards.model is a reward model's word"):
        make(rewards={"model": 1.0})


def test_one_bill_feeds_supervised_and_preference_learning(tokenizer):
    said = [("a", "yes", True), ("a", "no", False), ("a", "no", False), ("a", "so", True), ("a", "na", False),
            ("b", "yes", True), ("c", "no", False), ("a", "ah", True)]  # fmt: skip
    rows = [{"id": str(n), "prompt": p, "solution": s, "liked": liked} for n, (p, s, liked) in enumerate(said)]

    def learnt(batch, row):
        return tokenizer.decode(batch["ids"][row][batch["labels"][row] != packing.IGNORE]).removesuffix("<|end|>")

    pairs = dpo.DPO.model_validate({"method": "dpo", "training": TRAINING} | PARENTS)
    batch = pairs.batches(Given(tokenizer, [], rows, None))(0)
    made = {(learnt(batch, n), learnt(batch, n + 4)) for n in range(4)}
    chosen, rejected = (sorted(side) for side in zip(*made, strict=True))  # of "a", none twice; others have one kind
    assert len(made) == 2 and set(chosen) < {"yes", "so", "ah"} and rejected == ["na", "no"] and len(set(chosen)) == 2
    with pytest.raises(UserError, match="'5' and all others are single replies: `method: kto`"):
        pairs.batches(Given(tokenizer, [], rows[5:7], None))

    supervised = sft.SFT.model_validate({"method": "sft", "training": TRAINING} | PARENTS)
    batch = supervised.batches(Given(tokenizer, [], rows, None))(0)
    words = tokenizer.decode(batch["ids"][batch["labels"] != packing.IGNORE])
    assert sorted(words.split("<|end|>")[:4]) == ["ah", "so", "yes", "yes"] and "n" not in words.replace("end", "")

    verdicts = kto.KTO.model_validate({"method": "kto", "training": TRAINING | {"batch_size": 8}} | PARENTS)
    assert verdicts.batches(Given(tokenizer, [], rows, None))(0)["liked"].sum() == 4
