"""Classification: probabilities against the model's own forward pass, in memory, in a file, in training."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from stages.distill import Teacher
from stages.distill.labels import Labels as Student
from stages.eval import accuracy
from stages.eval.parts import labelled
from stages.export import gguf
from stages.lib.frame.errors import UserError
from stages.lib.runtimes import labels as asked
from stages.lib.runtimes.transformers import Transformers
from stages.lib.store import models, records
from stages.lib.text import chat, labels
from stages.traces.labels import Labels as Recorder

PARENTS = {"model": "pretrain/base", "tokens": "tokenize/bpe"}
TEXTS = ["the sea was calm", "a whale", "call me what you like, but do it before the storm comes", "rain"]
NAMES = ["yes", "no"]
TASK = labels.Task(NAMES, "Is it wet? {text}")


def rows(solutions=("yes", "no", "no", "yes")):
    return [
        {"id": str(n), "family": s, "labels": NAMES, "template": TASK.template, "prompt": TASK.prompt(t), "solution": s}
        for n, (t, s) in enumerate(zip(TEXTS, solutions, strict=True))
    ]


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source" / "records").mkdir(parents=True)
    records.save(tmp_path / "source" / "records", train=rows(), held_out=[])
    return tmp_path / "source"


@torch.no_grad()
def expected(model, tokenizer):
    """Each prompt alone by transformers."""
    first = [chat.chat(tokenizer, "x", name).ids[len(chat.prompt_ids(tokenizer, "x"))] for name in NAMES]
    found = []
    for text in TEXTS:
        ids = chat.prompt_ids(tokenizer, TASK.prompt(text))
        logits = model(torch.tensor([ids])).logits[0, -1].double()
        both = [logits[token].exp() for token in first]
        found.append([float(each / sum(both)) for each in both])
    return np.array(found)


def test_probabilities_are_those_of_the_first_token(model_folder, tokenizer):
    runtime = Transformers(model_folder)
    found = asked.probabilities(runtime, TASK, TEXTS)
    np.testing.assert_allclose(found, expected(runtime.model, tokenizer), atol=1e-5)


@pytest.mark.parametrize("context", [64, 512])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_recording_is_what_the_teacher_says(model_folder, tokenizer, source, context, batch_size):
    p = {"method": "labels", "source": "data/x", "model": "align/x", "context": context, "batch_size": batch_size}
    p["precision"] = "float32"  # "auto" is bfloat16 on a CPU with AMX
    recorder = Recorder.model_validate(p)
    found = {row["id"]: row for row in recorder.record(recorder.open(model_folder, source), source)}
    right = expected(models.load(model_folder), tokenizer)
    for number, row in enumerate(rows()):
        mine = found[row["id"]]
        np.testing.assert_allclose(mine["probabilities"], right[number], atol=2e-6)
        assert mine["solution"] == NAMES[int(right[number].argmax())] and mine["prompt"] == row["prompt"]


def student(**p):
    given = {"teacher": "align/x", "traces": "traces/x", "training": {"steps": 1, "batch_size": 2}}
    return Student.model_validate({"method": "labels", **PARENTS, **given, **p})


def test_the_loss_is_the_formula(tiny, tokenizer, source):
    """Row by row, and text by text."""
    soft = [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.0, 1.0]]
    known = [row | {"probabilities": p} for row, p in zip(rows(), soft, strict=True)]
    records.save(source / "records", train=known, held_out=[])
    technique = student(context=128)
    batch = technique.batches(tokenizer, source / "records")(0)
    first = [chat.chat(tokenizer, "x", name).ids[len(chat.prompt_ids(tokenizer, "x"))] for name in NAMES]
    begins, ends = [], []
    for row, best in zip(known, (0, 1, 0, 1), strict=True):  # of equals the first
        coded = chat.chat(tokenizer, row["prompt"], NAMES[best])
        log_TV = tiny(torch.tensor([coded.ids])).logits[0].log_softmax(-1)
        chances = zip(row["probabilities"], first, strict=True)
        begins.append(-sum(p * log_TV[coded.begin - 1, token] for p, token in chances))
        ends += [-log_TV[place - 1, coded.ids[place]] for place in range(coded.begin + 1, len(coded.ids))]
    found = technique.loss(tiny, Teacher(tiny, tokenizer), batch)
    expected = torch.stack(begins).mean() + torch.stack(ends).mean()
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)


def test_without_a_teacher_the_labels_themselves_are_learnt(tokenizer, source):
    batch = student(training={"steps": 1, "batch_size": 1}).batches(tokenizer, source / "records")(0)
    assert sorted(map(tuple, batch["targets"].tolist())) == [(0, 1), (0, 1), (1, 0), (1, 0)]
    unlabelled = [{key: row[key] for key in row if key != "solution"} for row in rows()]
    records.save(source / "records", train=unlabelled, held_out=[])
    with pytest.raises(UserError, match=r"traces/x: record '0' has no label; traces/labels asks a teacher"):
        student().batches(tokenizer, source / "records")


def test_labels_that_begin_alike_are_refused(tokenizer):
    with pytest.raises(UserError, match="labels 'no' and 'no way' both begin with the token"):
        labels.tokens(tokenizer, ["no", "no way"])


def test_a_config_remembers_one_task_and_forgets_it(tiny, tokenizer, tmp_path):
    labels.keep(tiny.config, rows())
    models.save(tiny, tokenizer, tmp_path / "model")
    assert asked.of(tmp_path / "model") == TASK == labels.task_of(models.load(tmp_path / "model").config)
    labels.keep(tiny.config, [*rows(), {"prompt": "?", "solution": "!"}])
    models.save(tiny, tokenizer, tmp_path / "model")
    assert asked.of(tmp_path / "model") is None


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
def test_a_gguf_carries_its_task_and_says_the_same(model_folder, tokenizer, tmp_path, kind):
    model = models.load(model_folder)
    labels.keep(model.config, rows())
    exporter = gguf.GGUF(method="gguf", type=kind, **PARENTS)
    exporter.write(model, tokenizer, tmp_path, torch.empty(0, 0))
    assert asked.of(tmp_path) == asked.of(tmp_path / "model.gguf") == TASK
    found = asked.probabilities(exporter.open(tmp_path), TASK, TEXTS)
    np.testing.assert_allclose(found, expected(models.load(model_folder), tokenizer), atol=0.02)


def test_accuracy_of_labels(model_folder, tokenizer):
    runtime = Transformers(model_folder)
    right = expected(runtime.model, tokenizer)
    said = [NAMES[best] for best in right.argmax(1)]
    problems = rows(("yes", "yes", "no", "no"))
    scores = accuracy.Accuracy(records="data/x", per_family=2).score(runtime, problems)
    truth = [row["solution"] for row in sorted(problems, key=lambda row: row["family"])]
    order = sorted(range(4), key=lambda n: problems[n]["family"])
    said = [said[n] for n in order]
    assert scores.metrics["accuracy"] == np.mean([a == b for a, b in zip(said, truth, strict=True)])
    assert scores.metrics["macro_f1"] == pytest.approx(
        f1_score(truth, said, average="macro", labels=NAMES, zero_division=0)
    )


def test_macro_f1_is_scikit_learns():
    random = np.random.default_rng(0)
    truth, said = (random.choice(["a", "b", "c"], 60).tolist() for _ in range(2))
    assert labelled.macro_f1(truth, said) == pytest.approx(f1_score(truth, said, average="macro"))


def test_calibration_error_by_hand():
    """Two of confidence 0.9, one right: off by 0.4; two of 0.6, both right: off by 0.4."""
    confidence = np.array([0.9, 0.9, 0.6, 0.6])
    assert labelled.calibration_error(confidence, [True, False, True, True]) == pytest.approx(0.4)
    assert labelled.calibration_error(np.array([1.0]), [True]) == 0
