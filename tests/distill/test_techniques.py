"""What every distillation technique must hold. A new file in stages/distill/ is picked up here."""

from importlib import import_module

import pytest
import torch

from stages import distill
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.store import records, traces
from stages.lib.training import loop
from stages.traces import logits as recorder

PARENTS = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
NEEDS = {"task_specific": {"share": 1}}  # one phase: the loss of another can't be compared with it
TRAINING = {"steps": 30, "batch_size": 4, "lr": 5e-3, "precision": "float32"}


@pytest.fixture(params=params.techniques("distill"))
def technique(request):
    return import_module(f"stages.distill.{request.param}")


def make(technique):
    name = technique.__name__.rsplit(".", 1)[1]
    given = {
        "method": name,
        "model": "a/b",
        "teacher": "a/b",
        "traces": "a/b",
        "tokens": "a/b",
    }
    return technique.Params(**given, training=TRAINING, **NEEDS.get(name, {}))


@pytest.fixture
def tiny(tiny, tokenizer):
    """The teacher, with its tokenizer as the stage hands it over."""
    tiny.tokenizer = tokenizer
    return tiny


@pytest.fixture
def recorded(technique, tiny, tokenizer, rows, tmp_path):
    """What each technique learns from, written by the teacher `tiny`."""
    with files.writing(tmp_path / "traces") as folder:
        if technique.__name__.endswith("logits"):
            p = recorder.Params(method="logits", model="a/b", problems="a/b", tokens="a/b", rows=8, k=16)
            items = recorder.record(tiny, tokenizer, [], rows.numpy().astype("uint16"), p)
            traces.save(folder, {"technique": {"temperature": 2.0}}, items)
        else:
            solved = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(100)]
            records.save(folder, train=solved)
    return tmp_path / "traces"


@pytest.fixture
def student(technique, tiny, tokenizer, llama):
    """Another model than the teacher, with what the technique trains beside it."""
    student = llama(len(tokenizer), seed=1)
    if hasattr(technique, "prepare"):
        technique.prepare(student, tiny, make(technique))
    return student


def test_a_student_learns(technique, recorded, tiny, tokenizer, student, tmp_path):
    p, curve = make(technique), []
    batch = technique.batches(tokenizer, recorded, p)
    loop.fit(student, batch, lambda part: technique.loss(student, tiny, part, p), p.training, curve, tmp_path / "c")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


def test_the_same_batch_gives_the_same_loss_and_no_negative_one(technique, recorded, tiny, tokenizer, student):
    p = make(technique)
    batch = technique.batches(tokenizer, recorded, p)
    for index in range(3):
        first, second = (technique.loss(student, tiny, batch(index), p) for _ in range(2))
        assert torch.equal(first, second) and first > 0


def test_of_many_solutions_only_those_that_are_taken_as_known(technique, tokenizer, tmp_path):
    solved = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(100)]
    records.save(tmp_path, train=solved)

    def some(examples, seed):
        p = make(technique)
        given = p.model_dump() | {"examples": examples, "training": {**TRAINING, "seed": seed}}
        return distill.solved(tmp_path, type(p)(**given))

    drawn = [some(7, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and all(row in solved for row in drawn[0])
    assert len({row["id"] for row in drawn[0]}) == 7 and some(None, 0) == solved
    with pytest.raises(UserError, match="examples is 101, but a/b has 100 solutions"):
        some(101, 0)
