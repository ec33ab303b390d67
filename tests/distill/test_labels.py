"""Hints beside labels: the formula token by token, when they count, and what a remembered row may not change; and that
what was learnt to be said ends."""

import pytest
import torch
from pydantic import ValidationError

from stages.distill import SCAFFOLD, Teacher
from stages.distill.labels import Labels
from stages.lib.frame.errors import UserError
from stages.lib.nets import decoding
from stages.lib.sampling import rollouts
from stages.lib.store import records
from stages.lib.text import chat
from stages.lib.training import loop

PARENTS = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
KIND = {"labels": ["yes", "no"], "template": "{text}"}
TEXTS = ("a fine whale", "Call me Ishmael", "whale oil burns well", "no ship", "the sea", "a harpoon in the hold")
STEPS = 10


def labelled(**given):
    training = {"steps": STEPS, "batch_size": 2, "precision": "float32"}
    return Labels.model_validate({"method": "labels", **PARENTS, "context": 64, "training": training} | given)


@pytest.fixture
def rows(tmp_path):
    told = [{"probabilities": [p, 1 - p], "solution": "yes"} for p in (0.9, 0.2, 0.6, 0.4, 0.8, 0.1)]
    made = [
        {"id": str(n), "prompt": text} | KIND | said for n, (text, said) in enumerate(zip(TEXTS, told, strict=True))
    ]
    records.save(tmp_path, train=made)
    return tmp_path


@pytest.fixture
def teacher(llama, tokenizer):
    return Teacher(llama(len(tokenizer), seed=2, hidden=96), tokenizer)


def with_scaffold(technique, student, teacher):
    student.add_module(SCAFFOLD, technique.scaffold(student, teacher))
    for weight in student.get_submodule(SCAFFOLD).parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(weight.numel()))
    return student


def test_what_it_has_learnt_to_say_ends(llama, tokenizer, teacher, rows, tmp_path):
    """Else a runtime that knows nothing of labels would go on for ever."""
    technique = labelled(training={"steps": 60, "batch_size": 2, "lr": 0.003, "precision": "float32"})
    student, batch = llama(len(tokenizer), seed=1), technique.batches(tokenizer, rows)
    loop.fit(
        student, batch, lambda part: technique.loss(student, teacher, part), technique.training, [], tmp_path / "place"
    )
    asked = rollouts.padded([chat.prompt_ids(tokenizer, text) for text in TEXTS], chat.filler(tokenizer))
    stops = chat.stops(tokenizer)
    replies = rollouts.replies(student, asked, 8, 0.0, chat.filler(tokenizer), stops).tolist()
    said = [tokenizer.decode(decoding.until(reply, stops), skip_special_tokens=True).strip() for reply in replies]
    assert said == ["yes", "no", "yes", "no", "yes", "no"]
    assert all(set(reply) & set(stops) for reply in replies)


def test_hints_are_their_formula_text_by_text(llama, tokenizer, teacher, rows):
    technique = labelled(hints={"layers": [[0, 1], [2, 2]], "first": 0.5, "weight": 0.3})
    student = with_scaffold(technique, llama(len(tokenizer), seed=1), teacher)
    batch = technique.batches(tokenizer, rows)(0)
    states, targets = [[], []], [[], []]
    for ids, positions in zip(batch["ids"], batch["positions"], strict=True):
        begins = (positions == 0).nonzero().flatten().tolist()
        for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
            if end - begin < 2:
                continue  # what fills the row up
            said = chat.chat(tokenizer, chat.PROBE, "yes")
            text = ids[None, begin : end - len(said.ids) + said.begin]  # without the answer
            with torch.no_grad():
                mine = student(text, output_hidden_states=True).hidden_states
                theirs = teacher.model(text, output_hidden_states=True).hidden_states
            for pair, (i, j) in enumerate(((0, 1), (2, 2))):
                states[pair] += list(mine[i][0, 1:])
                targets[pair] += list(theirs[j][0, 1:])
    expected = 0.0
    for pair, project in enumerate(student.get_submodule(SCAFFOLD)):
        target_ME = torch.stack(targets[pair])
        target_ME = (target_ME - target_ME.mean(0)) / target_ME.std(0, correction=0)
        for state_D, target_E in zip(states[pair], target_ME, strict=True):
            said_E = project.weight @ (state_D / state_D.square().mean().sqrt()) + project.bias
            expected += (said_E - target_E).square().mean().item() / len(target_ME) / 2
    found = technique.loss(student, teacher, batch)
    assert found.item() == pytest.approx(expected, rel=0.02)  # the teacher's states are kept in 16 bits


def test_labels_join_when_their_time_comes(llama, tokenizer, teacher, rows):
    technique, alone = labelled(hints={"first": 0.5, "weight": 0.3}), labelled()
    student = with_scaffold(technique, llama(len(tokenizer), seed=1), teacher)
    batch = technique.batches(tokenizer, rows)

    def both(step):
        same = batch(0) | {"step": torch.tensor(step)}
        return technique.loss(student, teacher, same).item(), alone.loss(student, teacher, same).item()

    (early, _), (late, labels) = both(STEPS // 2 - 1), both(STEPS // 2)
    assert late == pytest.approx(labels + 0.3 * early, rel=1e-5)
    assert int(batch(STEPS - 1)["step"]) == STEPS - 1


def test_a_remembered_row_changes_nothing(llama, tokenizer, teacher, rows, monkeypatch):
    technique = labelled(hints={})
    student = with_scaffold(technique, llama(len(tokenizer), seed=1), teacher)
    batch = technique.batches(tokenizer, rows)(0)
    memory = student.get_submodule(SCAFFOLD).states
    first = technique.loss(student, teacher, batch)
    assert len(memory) == len(batch["ids"])
    monkeypatch.setattr(teacher.model, "forward", None)  # it need not read again
    assert torch.equal(technique.loss(student, teacher, batch), first)
    assert not [name for name in student.state_dict() if "states" in name]


def test_there_is_an_end_to_what_is_remembered(llama, tokenizer, teacher, rows, monkeypatch):
    monkeypatch.setattr("stages.distill.labels.REMEMBERED", 0)
    technique = labelled(hints={})
    student = with_scaffold(technique, llama(len(tokenizer), seed=1), teacher)
    batch = technique.batches(tokenizer, rows)(0)
    assert torch.equal(technique.loss(student, teacher, batch), technique.loss(student, teacher, batch))
    assert not student.get_submodule(SCAFFOLD).states


def test_hints_that_hint_nothing_are_refused(llama, tokenizer, teacher):
    with pytest.raises(ValidationError, match="nothing is hinted"):
        labelled(hints={"first": 0, "weight": 0})
    with pytest.raises(UserError, match="the student has no layer 7; allowed: 0 to 2"):
        labelled(hints={"layers": [[7, 1]]}).scaffold(llama(len(tokenizer), seed=1), teacher)
