"""Every method of align and distill by two processes, and a stage as DVC calls it: two devices are two parts in a row.

That holds for all methods to rounding, what they draw included; that accumulated parts are one large batch is shown of
the means in tests/lib/test_distributed.py.
"""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.align import Given
from stages.align import __main__ as align
from stages.align.parts.online import Online
from stages.distill import SCAFFOLD, Teacher
from stages.lib.frame import files, params
from stages.lib.store import adapters, models, records, tokens
from stages.lib.training import distributed, loop
from stages.lib.training.config import Training
from tests.conftest import build_llama

pytestmark = pytest.mark.slow
NEAR = {"atol": 1e-4, "rtol": 1e-4}
GIVEN = {"precision": "float32", "steps": 2, "lr": 2e-3, "warmup": 0}
PARENTS = {
    "align": dict.fromkeys(("model", "problems", "examples"), "a/b"),
    "distill": dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b"),
}
SOLVED = [
    {"id": str(n), "prompt": f"Say {n}" + " now" * (n % 5), "solution": f"#### {n}" * (1 + n % 3)} for n in range(16)
]
PAIRS = [row | {"chosen": row["solution"], "rejected": f"#### {n + 1}"} for n, row in enumerate(SOLVED)]
KIND = {"labels": ["odd", "even"], "template": "{text}"}
ROWS = {
    "process_reward": [row | {"steps": [float(n % 2)]} for n, row in enumerate(SOLVED)],
    "labels": [row | KIND | {"solution": KIND["labels"][n % 2]} for n, row in enumerate(SOLVED)],
    **dict.fromkeys(("dpo", "orpo", "simpo", "kto", "reward"), PAIRS),
}
DRAWN = {"group": 4, "max_new_tokens": 6, "forecast": 0, "rewards": {"correct": 0, "random": 1}}
MORE = {
    "sft": {"lora": {"rank": 2, "alpha": 4}},
    "labels": {"hints": {"first": 0.5}},
    "on_policy": {"on_policy": 1.0, "max_new_tokens": 6},
}
CASES = [
    (stage, name, parallel)
    for stage in ("align", "distill")
    for name in params.techniques(stage)
    for parallel in ("ddp", "fsdp")
    if parallel == "ddp" or name not in ("grpo", "ppo", "reinforce", "on_policy")
]


def technique(stage, name, shape):
    kind = params.technique_class(stage, name)
    online = issubclass(kind, Online)
    training = GIVEN | {"batch_size": 16 if online else 8} | shape
    return kind(
        method=name, **PARENTS[stage], context=64, training=training, **MORE.get(name, {}), **(DRAWN if online else {})
    )


def train(stage, name, shape, folder):
    """As the stages do it; weights and curve."""
    p, tokenizer = technique(stage, name, shape), models.load_tokenizer(folder / "model")
    policy, other, curve = models.load(folder / "model"), build_llama(len(tokenizer), seed=1), []
    rows = ROWS.get(name, SOLVED)
    if stage == "align":
        policy = adapters.wrap(policy, p.lora)
        given = align.adapters_off(policy) if p.lora else align.unchanged(other)
        scaffold, told = p.scaffold(policy), (p.watch, p.cycle(), p.terms)
        batches = p.batches(Given(tokenizer, SOLVED, rows, policy))
    else:
        given, place = Teacher(other, tokenizer), folder / f"traces-{distributed.rank()}"
        scaffold, told = p.scaffold(policy, given), (lambda curve: None, 1, p.terms)
        place.mkdir(exist_ok=True)
        records.save(place, train=rows)
        batches = p.batches(tokenizer, place)
    if scaffold:
        policy.add_module(align.SCAFFOLD if stage == "align" else SCAFFOLD, scaffold)

    def loss(batch):
        return p.loss(policy, given, batch)

    loop.fit(policy, batches, loss, p.training, curve, folder / "kept" / f"{stage}-{name}", *told)
    return [weight.detach() for weight in policy.parameters()], curve


def main(folder: Path):
    """All of them, one after another in the same two processes."""
    arguments = dict(locals())
    distributed.start(main, arguments, Training(steps=1, batch_size=2, devices=2))
    found = {}
    for stage, name, parallel in CASES:
        try:
            shape, place = {"devices": 2, "parallel": parallel}, folder / parallel
            found[stage, name, parallel] = train(stage, name, shape, place)
        except distributed.Trained:
            continue
    if distributed.active():
        raise distributed.Trained
    return found


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    for parallel in ("ddp", "fsdp"):
        models.save(build_llama(len(tokenizer)), tokenizer, folder / parallel / "model")
    return folder


@pytest.fixture(scope="module")
def found(folder):
    return main(folder)


@pytest.mark.parametrize(("stage", "name", "parallel"), CASES)
def test_two_devices_are_two_parts(found, folder, stage, name, parallel):
    weights, curve = found[stage, name, parallel]
    wanted, alone = train(stage, name, {"accumulation": 2}, folder / parallel)
    assert list(map(list, curve)) == list(map(list, alone)) and len(curve) == GIVEN["steps"]
    torch.testing.assert_close([list(row.values()) for row in curve], [list(row.values()) for row in alone], **NEAR)
    near = torch.cat([torch.isclose(a, b, **NEAR).flatten() for a, b in zip(weights, wanted, strict=True)])
    assert near.float().mean() > 0.999, "AdamW makes a whole step of a gradient that is only rounding, of a few weights"
    torch.testing.assert_close(weights, wanted, atol=2 * GIVEN["steps"] * GIVEN["lr"], rtol=0)  # there and back


TRAINING = "steps: 3, batch_size: 4, precision: float32"
PRETRAIN = f"""
tokenize: {{bpe: {{}}}}
pretrain:
  one: &one {{method: decoder, tokens: tokenize/bpe, hidden: 32, layers: 2, training: {{{TRAINING}}}}}
  two: {{<<: *one, training: {{{TRAINING}, devices: 2, parallel: fsdp}}}}
"""


def test_a_stage_as_dvc_calls_it(tmp_path, tokenizer, rows):
    (tmp_path / "params.yaml").write_text(PRETRAIN)
    files.write_json(tmp_path / "code.json", {})
    models.save(build_llama(len(tokenizer)), tokenizer, tmp_path / "tokenizer")
    about = {"tokenizer": files.digest(tmp_path / "tokenizer/tokenizer.json")}
    tokens.save(tmp_path / "tokens", about, train=rows.numpy(), held_out=rows.numpy())
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    for variant in ("one", "two"):
        given = f"{variant} --tokens tokens --tokenizer tokenizer --code code.json --checkpoints kept --out {variant}"
        command = [sys.executable, "-m", "stages.pretrain", *given.split()]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    one, two = (models.load(tmp_path / variant / "model").state_dict() for variant in ("one", "two"))
    torch.testing.assert_close(one, two, **NEAR)
    assert files.read_json(tmp_path / "two/timings.json")["train_tokens_per_s"] > 0
    assert not any((tmp_path / "kept").iterdir()), "no checkpoint is left"
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        told = store.execute("select name, status from runs order by start_time").fetchall()
    assert told == [("pretrain/one", "FINISHED"), ("pretrain/two", "FINISHED")], "one run a stage"
