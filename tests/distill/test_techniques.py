"""What every distillation technique must hold. A new file in stages/distill/ is picked up here."""

import pytest
import torch

from stages.distill import SCAFFOLD, Teacher
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.store import records, tokens, traces
from stages.lib.training import loop
from stages.traces.logits import Logits as Recorder

PARENTS = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
NEEDS = {"task_specific": {"share": 1}}  # one phase: the loss of another can't be compared with it
TRAINING = {"steps": 30, "batch_size": 4, "lr": 5e-3, "precision": "float32"}


@pytest.fixture(params=params.techniques("distill"))
def technique(request):
    return make(request.param)


def make(name, **more):
    kind = params.technique_class("distill", name)
    return kind(method=name, **PARENTS, **{"training": TRAINING} | NEEDS.get(name, {}) | more)


@pytest.fixture
def teacher(tiny, tokenizer):
    return Teacher(tiny, tokenizer)


@pytest.fixture
def recorded(technique, tiny, rows, tmp_path):
    """What each technique learns from, written by the teacher `tiny`."""
    with files.writing(tmp_path / "traces") as folder:
        if technique.method == "logits":
            tokens.save(
                tmp_path / "source/tokens", {"vocab_size": tiny.config.vocab_size}, train=rows.numpy().astype("uint16")
            )
            recorder = Recorder(method="logits", model="a/b", source="a/b", rows=8, k=16)
            items = recorder.record(tiny, tmp_path / "source")
            traces.save(folder, {"technique": {"temperature": 2.0}}, items)
        else:
            solved = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(100)]
            if technique.method == "labels":
                kind = {"labels": ["odd", "even"], "template": "{text}"}
                solved = [row | kind | {"solution": kind["labels"][n % 2 == 0]} for n, row in enumerate(solved)]
            records.save(folder, train=solved)
    return tmp_path / "traces"


@pytest.fixture
def student(technique, teacher, tokenizer, llama):
    """Another model than the teacher, with what the technique trains beside it."""
    student = llama(len(tokenizer), seed=1)
    if scaffold := technique.scaffold(student, teacher):
        student.add_module(SCAFFOLD, scaffold)
    return student


def test_a_student_learns(technique, recorded, teacher, tokenizer, student, tmp_path):
    batch, curve = technique.batches(tokenizer, recorded), []
    loop.fit(student, batch, lambda b: technique.loss(student, teacher, b), technique.training, curve, tmp_path / "c")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]


def test_the_same_batch_gives_the_same_loss_and_no_negative_one(technique, recorded, teacher, tokenizer, student):
    batch = technique.batches(tokenizer, recorded)
    for index in range(3):
        first, second = (technique.loss(student, teacher, batch(index)) for _ in range(2))
        assert torch.equal(first, second) and first > 0


def test_of_many_solutions_only_those_that_are_taken_as_known(technique, tmp_path):
    solved = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(100)]
    records.save(tmp_path, train=solved)

    def some(examples, seed):
        return make(technique.method, examples=examples, training=TRAINING | {"seed": seed}).solved(tmp_path)

    drawn = [some(7, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and all(row in solved for row in drawn[0])
    assert len({row["id"] for row in drawn[0]}) == 7 and some(None, 0) == solved
    with pytest.raises(UserError, match="examples is 101, but a/b has 100 solutions"):
        some(101, 0)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (
            {"method": "logits", "alpha": 1, "temperature": 3},
            "temperature is 3.0, but it counts only with alpha below 1",
        ),
        ({"method": "hidden", "beta": 0, "layers": [[1, 1]]}, "layers is .*, but it counts only with beta above 0"),
        ({"method": "task_specific", "share": 0, "layers": [[1, 1]]}, "layers is .*, but it counts only with share"),
        ({"method": "task_specific", "share": 1, "alpha": 0.5}, "alpha is 0.5, but it counts only with share below 1"),
        (
            {"method": "task_specific", "share": 1, "temperature": 2},
            "temperature is 2.0, but it counts only with share",
        ),
        ({"method": "cross_tokenizer", "weight": 0, "align": "positions"}, "align is 'positions', but it counts only"),
        ({"method": "on_policy", "on_policy": 0, "temperature": 2}, "temperature is 2.0, but it counts only with on_p"),
        ({"method": "on_policy", "on_policy": 0, "max_new_tokens": 8}, "max_new_tokens is 8, but it counts only with"),
        ({"method": "on_policy", "text_rows": 2}, "text_rows stand beside packed replies"),
    ],
)
def test_a_parameter_that_does_nothing_beside_another_is_refused(entry, complaint):
    with pytest.raises(UserError, match=f"params.yaml: distill.mine.*{complaint}"):
        params.technique("distill", "mine", entry | PARENTS | {"training": TRAINING})
