"""The stage as DVC calls it: what it writes and measures, of instructions and of pairs, with and without adapters."""

import csv
import json
from pathlib import Path

import pytest
import torch

from stages.align import __main__ as stage
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.store import models, records
from stages.tokenize import bpe

GIVEN = "model: pretrain/a, problems: data/a, examples: data/a, context: 64"
RLHF = "group: 4, max_new_tokens: 8, forecast: 0, reward_model: align/sft, rewards: {correct: 0, model: 1}"
JUDGED = "group: 4, max_new_tokens: 8, forecast: 0, rewards: {correct: 0, judge: 1}, judge: {url: 'URL', retries: 0}"
TRAINING = "training: {steps: 6, batch_size: 4, lr: 0.01, warmup: 0}"
PARAMS = f"""
data: {{a: {{}}}}
pretrain: {{a: {{}}}}
align:
  sft: {{method: sft, {GIVEN}, {TRAINING}}}
  dpo: {{method: dpo, {GIVEN}, {TRAINING}}}
  kto: {{method: kto, {GIVEN}, {TRAINING}}}
  low: {{method: dpo, lora: {{rank: 4}}, {GIVEN}, {TRAINING}}}
  judged: {{method: grpo, {JUDGED}, {GIVEN}, {TRAINING}}}
rlhf:
  asked: {{method: grpo, {RLHF}, {GIVEN}, {TRAINING}}}
"""
PREFERENCES = {"margin"} | {
    f"{name}_{when}"
    for name in ("preference_accuracy", "chosen_logprob", "rejected_logprob")
    for when in ("before", "after")
}
MEASURES = ["margin", "accuracy", "chosen_logprob", "rejected_logprob"]


@pytest.fixture
def run(tmp_path, monkeypatch, tiny, tokenizer):
    """run(variant): the metrics and the curve that its stage leaves; the params file has a name of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("mine.yaml").write_text(PARAMS)
    files.write_json(Path("code.json"), {})
    models.save(tiny, tokenizer, Path("model"))
    pairs = [{"id": str(n), "prompt": f"Say {n}", "chosen": f"#### {n}", "rejected": f"#### {n + 1}"} for n in range(8)]
    solved = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(8)]
    judged = [row | {"liked": n % 2 == 0} for n, row in enumerate(solved)]
    for name, rows in (("problems", solved), ("instructions", solved), ("pairs", pairs), ("judged", judged)):
        Path(name).mkdir()
        records.save(Path(name), train=rows, held_out=rows)

    def start(variant, **more):
        examples = Path({"sft": "instructions", "kto": "judged"}.get(variant, "pairs"))
        given = {"model": "model", "problems": "problems", "code": "code.json", "checkpoints": "kept", "out": variant}
        given = {name: Path(path) for name, path in given.items()} | {"params_file": Path("mine.yaml")}
        stage.main(variant, examples=examples, **given, **more)
        with Path(variant, "curve.csv").open() as file:
            return json.loads(Path(variant, "metrics.json").read_text()), list(csv.DictReader(file))

    return start


@pytest.mark.slow
def test_instructions(run):
    metrics, curve = run("sft")
    assert metrics.keys() == {"reply_loss_before", "reply_loss_after", "kl_reference"}
    assert metrics["reply_loss_after"] < metrics["reply_loss_before"] and metrics["kl_reference"] > 0
    assert list(curve[0]) == ["step", "loss", "lr"] and len(curve) == 6


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dpo", "low"])
def test_pairs(run, variant):
    metrics, curve = run(variant)
    assert metrics.keys() == {"reply_loss_before", "reply_loss_after", "kl_reference"} | PREFERENCES
    assert metrics["margin"] > 0.1 and metrics["kl_reference"] > 0
    assert metrics["preference_accuracy_after"] > metrics["preference_accuracy_before"]
    assert list(curve[0]) == ["step", "loss", "lr", *MEASURES] and float(curve[-1]["margin"]) > 0
    gap = {
        when: metrics[f"chosen_logprob_{when}"] - metrics[f"rejected_logprob_{when}"] for when in ("before", "after")
    }
    assert metrics["margin"] == pytest.approx(gap["after"] - gap["before"], abs=1e-4)
    assert Path(variant, "model/adapter").is_dir() == (variant == "low") and not Path("kept").exists()


@pytest.mark.slow
def test_replies_that_were_liked_or_not(run):
    metrics, curve = run("kto")
    said = {f"{name}_logprob_{when}" for name in ("liked", "disliked") for when in ("before", "after")}
    assert metrics.keys() == {"reply_loss_before", "reply_loss_after", "kl_reference"} | said
    moved = {
        name: metrics[f"{name}_logprob_after"] - metrics[f"{name}_logprob_before"] for name in ("liked", "disliked")
    }
    assert moved["liked"] > moved["disliked"]
    assert list(curve[0]) == ["step", "loss", "lr", "accuracy", "drift"]


@pytest.mark.slow
def test_a_kill_between_changes_nothing(run, monkeypatch):
    """Killed when half of the steps are done, and run again: the same model, metrics and curve."""
    whole, curve = run("dpo")
    weights = models.load(Path("dpo/model")).state_dict()
    loop, done = stage.loop, []
    monkeypatch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)  # a checkpoint every step
    update = loop.update

    def killed(*given):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(given)
        return update(*given)

    monkeypatch.setattr(loop, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        run("dpo")
    monkeypatch.setattr(loop, "update", update)
    assert (whole, curve) == run("dpo")
    assert all(torch.equal(w, weights[name]) for name, w in models.load(Path("dpo/model")).state_dict().items())


@pytest.mark.slow
def test_a_reward_model_is_asked_and_counts(run, unsure, moved, tokenizer):
    files.remove(Path("model"))
    models.save(unsure, tokenizer, Path("model"))
    models.save(moved, tokenizer, Path("judge"))
    metrics, curve = run("asked", reward_model=Path("judge"))
    assert metrics["kl_reference"] > 1e-3 and all(0 < float(row["reward"]) < 1 for row in curve)
    again, _ = run("asked", reward_model=Path("model"))
    assert again != metrics


@pytest.mark.slow
def test_a_judge_is_asked_and_what_it_said_outlives_its_end(run, unsure, tokenizer, answering):
    files.remove(Path("model"))
    models.save(unsure, tokenizer, Path("model"))
    params_file = Path("mine.yaml")
    params_file.write_text(params_file.read_text().replace("URL", answering.url))
    asked = []

    def answer(body):
        asked.append(body)
        text = body["messages"][0]["content"].split("[Answer]")[1].split("[Your grade]")[0]
        return "10" if any(digit in text for digit in "13579") else "1"

    answering.answer = answer
    metrics, curve = run("judged")
    before = len(asked)
    assert metrics["kl_reference"] > 1e-3 and before > 0 and {float(row["reward"]) for row in curve} != {0.0}
    assert run("judged") == (metrics, curve) and len(asked) == before  # nobody is asked, or paid, twice
    files.remove(Path("kept"))
    answering.answer = lambda body: answer(body) if len(asked) < before + 5 else "no idea"
    with pytest.raises(UserError, match="says no number from 1 to 10, but for example 'no idea'"):
        run("judged")
    answering.answer = answer
    assert run("judged") == (metrics, curve)


@pytest.mark.slow
def test_a_reward_model_of_other_tokens_is_refused(run, tiny, tmp_path):
    folder = Path(__file__).parents[2]
    texts = [(folder / name).read_text() for name in ("README.md", "docs/guide.md")]
    p = bpe.BPE.model_validate({"method": "bpe", "documents": "a/b", "problems": "a/b", "vocab_size": 600})
    models.save(tiny, p.train(texts), Path("judge"))
    with pytest.raises(UserError, match="judge has another vocabulary than the model that it is to score"):
        run("asked", reward_model=Path("judge"))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"reward_model": "align/a"}, "reward_model is asked by the weight `rewards.model`: give both or neither"),
        ({"rewards": {"model": 1}}, "reward_model is asked by the weight `rewards.model`: give both or neither"),
        ({"judge": {}}, "judge is asked by the weight `rewards.judge`: give both or neither"),
        ({"rewards": {"judge": 1}}, "judge is asked by the weight `rewards.judge`: give both or neither"),
    ],
)
def test_a_reward_model_or_judge_and_its_weight_belong_together(more, complaint):
    entry = {"method": "grpo", "model": "a/b", "problems": "a/b", "examples": "a/b", "training": {"steps": 1}}
    with pytest.raises(UserError, match=complaint):
        params.technique("align", "mine", entry | more)


def test_who_asks_a_reward_model_stands_under_rlhf(tmp_path):
    entry = {"method": "grpo", "model": "a/b", "problems": "a/b", "examples": "a/b", "training": {"steps": 1}}
    asks = entry | {"reward_model": "align/a", "rewards": {"model": 1}}
    assert params.technique("align", "mine", asks).section() == "rlhf"
    assert params.technique("align", "mine", entry).section() == "align"
