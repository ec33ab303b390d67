"""What a teacher says of texts, against one forward pass each."""

import pytest
import torch

from stages.lib.frame import files
from stages.lib.store import models, records
from stages.lib.text import chat
from stages.lib.text import labels as tasks
from stages.traces import labels

TEXTS = ("a fine whale swims on", "Call me Ishmael", "whale")
TASK = tasks.Task(["yes", "no"], "Is it? {text} (yes or no)")
P = {"method": "labels", "model": "a/b", "source": "a/b", "context": 256, "precision": "float32"}


@pytest.fixture
def record(taught, tokenizer, tmp_path):
    with files.writing(tmp_path / "records") as place:
        rows = [{"id": f"rows/{n}", "prompt": TASK.prompt(text)} for n, text in enumerate(TEXTS)]
        records.save(place, train=[row | {"family": "unlabelled"} | TASK._asdict() for row in rows])
    models.save(taught, tokenizer, tmp_path / "teacher")

    def run(**settings):
        technique = labels.Labels.model_validate(P | settings)
        return list(technique.record(technique.open(tmp_path / "teacher", tmp_path), tmp_path))

    return run


def test_every_text_has_the_teachers_own_probabilities(record, taught, tokenizer):
    found = record()
    assert [TASK.text(row["prompt"]) for row in found] == list(TEXTS)
    token_L = tasks.tokens(tokenizer, TASK.labels)
    for row in found:
        ids = torch.tensor([chat.prompt_ids(tokenizer, row["prompt"])])
        with torch.no_grad():
            expected_L = taught(input_ids=ids).logits[0, -1, token_L].softmax(-1)
        torch.testing.assert_close(torch.tensor(row["probabilities"]), expected_L, rtol=1e-4, atol=1e-5)
        assert row["solution"] == TASK.labels[expected_L.argmax()]


def test_sixteen_bits_say_nearly_the_same(record):
    whole, half = ([row["probabilities"] for row in record(precision=p)] for p in ("float32", "bfloat16"))
    assert whole != half
    torch.testing.assert_close(torch.tensor(whole), torch.tensor(half), rtol=0, atol=0.05)
