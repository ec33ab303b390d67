"""What every trace technique must hold. A new file in stages/traces/ is picked up here."""

from importlib import import_module

import pytest
import torch

from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.store import traces
from stages.lib.text import problems

SETTINGS = {
    "logits": {"rows": 6, "k": 8, "batch_size": 4},
    "multi_teacher": {"k": 8, "batch_size": 3},
    "solutions": {"count": 12, "attempts": 2, "batch_size": 5},
    "llama_cpp": {"count": 12, "attempts": 2, "batch_size": 5},
    "endpoint": {"count": 12, "attempts": 2, "batch_size": 5, "concurrency": 2},
}
PARENTS = dict.fromkeys(("model", "problems", "tokens"), "a/b")


@pytest.fixture(params=params.techniques("traces"))
def name(request):
    return request.param


def recording(teacher, tokenizer, rows, folder):
    """What another teacher can join."""
    from stages.traces import logits

    p = logits.Params(method="logits", **PARENTS, **SETTINGS["logits"])
    with files.writing(folder) as temporary:
        items = logits.record(teacher, tokenizer, [], rows.numpy().astype("uint16"), p)
        traces.save(temporary, {"technique": {"temperature": p.temperature}}, items)
    return folder


@pytest.fixture
def record(name, request, tokenizer, asked, rows, tmp_path):
    """record(place, **settings): what it writes; teachers are opened as the stage does."""
    technique, more = import_module(f"stages.traces.{name}"), SETTINGS[name]
    if name == "endpoint":
        more = more | {"url": request.getfixturevalue("llama_server")}

    def run(place, **settings):
        p = technique.Params(method=name, **PARENTS, **more | settings)
        if hasattr(technique, "open_teacher"):
            teacher = technique.open_teacher(request.getfixturevalue("gguf_folder"), tmp_path / place, p)
        else:
            teacher = request.getfixturevalue("taught")
        given = recording(teacher, tokenizer, rows, tmp_path / "base") if name == "multi_teacher" else asked
        return technique.record(teacher, tokenizer, given, rows.numpy().astype("uint16"), p)

    return run


def test_the_same_seed_gives_the_same_bytes(record, tmp_path):
    for name in ("one", "two"):
        with files.writing(tmp_path / name / "records") as folder:
            said = traces.save(folder, {}, record(f"journal-{name}"))
        assert said.get("solutions", said.get("rows")) > 0
    assert files.digest(tmp_path / "one") == files.digest(tmp_path / "two")


def test_kept_solutions_are_right_by_the_scorer(name, record, asked):
    """The teacher knows one answer: only problems with that answer are kept, each once."""
    if name in ("logits", "multi_teacher"):
        pytest.skip("no solutions")
    kept = list(record("journal"))
    right = {row["id"] for row in asked if row["answer"] == "Yes"}
    assert {row["id"] for row in kept} <= right and len({row["id"] for row in kept}) == len(kept)
    assert all(problems.correct(row, row["solution"]) and row["chosen_by"] == "verifier" for row in kept)


def test_greedy_every_runtime_keeps_the_same(name, record, asked):
    """Of all problems exactly those with the answer the teacher knows, whatever it runs in."""
    if name in ("logits", "multi_teacher"):
        pytest.skip("no solutions")
    kept = {row["id"]: row["solution"] for row in record("journal", temperature=0, count=20)}
    assert kept == {row["id"]: "#### Yes" for row in asked if row["answer"] == "Yes"}


def test_recorded_distributions_are_the_live_teachers(tiny, tokenizer, asked, rows, tmp_path):
    """Masses of the tiers 0 | 1 | 2-3 | 4-7 and the token numbers, against the teacher; its own KL said twice."""
    from stages.traces import logits

    p = logits.Params(method="logits", **PARENTS, **SETTINGS["logits"])
    with files.writing(tmp_path / "t") as folder:
        traces.save(folder, {}, logits.record(tiny, tokenizer, asked, rows.numpy().astype("uint16"), p))
    batch = traces.batches(tmp_path / "t", 6)(0)
    assert torch.equal(batch["ids"], rows[:6])
    with torch.no_grad():
        live = (tiny(input_ids=rows[:6]).logits / 2.0).log_softmax(-1)
    top = live.topk(8)
    assert torch.equal(batch["index"], top.indices.sort(-1).values)
    said = torch.zeros_like(live).scatter(-1, batch["index"], batch["logprob"].exp()).gather(-1, top.indices)
    for tier in (slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 8)):
        torch.testing.assert_close(said[..., tier].sum(-1), top.values[..., tier].exp().sum(-1), rtol=0.05, atol=0)
    metrics = traces.fidelity(tmp_path / "t", tiny, 2.0)
    rest = (1 - said.sum(-1, keepdim=True)) / (live.shape[-1] - 8)
    whole = rest.expand(live.shape).scatter(-1, batch["index"], batch["logprob"].exp())
    assert metrics["kl_to_full"] == pytest.approx((live.exp() * (live - whole.log())).sum(-1).mean().item(), rel=1e-3)
    assert 0 <= metrics["kl_of_code"] < 0.01


def test_k_beyond_the_vocabulary_is_refused(tiny, rows):
    from stages.traces import logits

    p = logits.Params(method="logits", rows=2, k=512, **PARENTS)
    with pytest.raises(UserError, match="k is 512, but the teacher's vocabulary has only 512 tokens"):
        next(logits.record(tiny, None, [], rows.numpy(), p))
