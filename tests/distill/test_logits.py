"""The soft loss by loops, at equality, and against the KL over the whole vocabulary."""

import pytest
import torch
import torch.nn.functional as F

from stages.distill import Teacher, logits
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import records, traces
from stages.lib.text import chat

TEMPERATURE = 2.0
PARENTS = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
GIVEN = {"method": "logits", "training": {"steps": 1}} | PARENTS


def recording(teacher_BTV, k):
    logprob, index = (teacher_BTV / TEMPERATURE).log_softmax(-1).topk(k)
    return {"logprob": logprob, "index": index}


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(2, 3, 11) * 3, torch.randn(2, 3, 11) * 3  # teacher, student


def test_by_loops(pair):
    teacher, student = pair
    p, q = (x.div(TEMPERATURE).softmax(-1) for x in pair)
    total = 0.0
    for b in range(2):
        for t in range(3):
            top = sorted(range(11), key=lambda v: -p[b, t, v].item())[:4]
            total += sum(p[b, t, v] * (p[b, t, v] / q[b, t, v]).log() for v in top)
            rest_p, rest_q = 1 - sum(p[b, t, v] for v in top), 1 - sum(q[b, t, v] for v in top)
            total += rest_p * (rest_p / rest_q).log()
    torch.testing.assert_close(logits.recorded_divergence(student, recording(teacher, 4), TEMPERATURE), total / 6)


def test_zero_for_the_teacher_itself_and_at_most_the_whole_kl(pair):
    teacher, student = pair
    assert logits.recorded_divergence(teacher, recording(teacher, 4), TEMPERATURE).item() == pytest.approx(0, abs=1e-6)
    whole = F.kl_div(
        (student / TEMPERATURE).log_softmax(-1),
        (teacher / TEMPERATURE).log_softmax(-1),
        log_target=True,
        reduction="sum",
    )
    shares = [logits.recorded_divergence(student, recording(teacher, k), TEMPERATURE).item() for k in (1, 4, 10)]
    assert 0 < shares[0] <= shares[1] <= shares[2] <= whole.item() / 6 + 1e-5
    assert shares[2] == pytest.approx(whole.item() / 6, rel=1e-3)  # ten of eleven and a bucket of one: all of it


def test_alpha_weighs_data_against_teacher(tokenizer, rows, llama):
    student = llama(len(tokenizer), seed=1)
    with torch.no_grad():
        teacher = llama(len(tokenizer))(input_ids=rows[:2]).logits
        output = student(input_ids=rows[:2]).logits
    batch = recording(teacher, 8) | {"ids": rows[:2]}
    hard = F.cross_entropy(output[:, :-1].flatten(0, 1), rows[:2, 1:].flatten())
    soft = logits.recorded_divergence(output, batch, TEMPERATURE)
    for alpha in (0.0, 0.3, 1.0):
        expected = alpha * hard + (1 - alpha) * TEMPERATURE**2 * soft
        torch.testing.assert_close(logits.Logits(**GIVEN, alpha=alpha).loss(student, None, batch), expected)


def test_live_it_is_the_same_over_the_replies(tokenizer, tiny, llama, tmp_path):
    """Against F.kl_div over one whole example; zero for the teacher itself."""
    solved = [{"id": "0", "prompt": "Say 7", "solution": "#### 7"}]
    records.save(tmp_path / "records", train=solved)
    p = logits.Logits(**GIVEN | {"training": {"steps": 1, "batch_size": 1}}, alpha=0.0)
    batch = p.batches(tokenizer, tmp_path / "records")(0)
    student = llama(len(tokenizer), seed=1)
    ids = chat.chat_ids(tokenizer, "Say 7", "#### 7")
    begin = len(chat.prompt_ids(tokenizer, "Say 7"))
    said = [
        (model(input_ids=torch.tensor([ids])).logits[0, begin - 1 : -1] / TEMPERATURE).log_softmax(-1)
        for model in (student, tiny)
    ]
    expected = TEMPERATURE**2 * F.kl_div(*said, log_target=True, reduction="batchmean")
    torch.testing.assert_close(p.loss(student, Teacher(tiny, tokenizer), batch), expected)
    assert p.loss(tiny, Teacher(tiny, tokenizer), batch).item() == pytest.approx(0, abs=1e-6)


def test_solutions_drawn_at_a_temperature_are_no_recording(tokenizer, tmp_path):
    traces.save(
        tmp_path, {"technique": {"temperature": 0.7}}, iter([{"id": "0", "prompt": "Say 7", "solution": "#### 7"}])
    )
    assert "labels" in logits.Logits(**GIVEN).batches(tokenizer, tmp_path)(0)


def test_another_temperature_or_kind_of_traces_is_refused(tmp_path):
    files.write_json(tmp_path / "about.json", {"codec": {}, "technique": {"temperature": 3.0}})
    with pytest.raises(UserError, match="temperature is 2.0, but .* was recorded at 3.0"):
        logits.Logits(**GIVEN).batches(None, tmp_path)
    folder = tmp_path / "solutions"
    files.write_json(folder / "about.json", {"technique": {"temperature": 0.7}})
    with pytest.raises(UserError, match="no recorded distributions"):
        traces.batches(folder, 4)
    with pytest.raises(UserError, match="examples is of solutions; a/b holds distributions"):
        logits.Logits(**GIVEN, examples=5).batches(None, tmp_path)
    with pytest.raises(UserError, match="context is of solutions; a/b holds distributions"):
        logits.Logits(**GIVEN, context=64).batches(None, tmp_path)
