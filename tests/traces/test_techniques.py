"""What every trace technique must hold. A new file in stages/traces/ is picked up here."""

import pytest
import torch

from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.store import models, records, tokens, traces
from stages.lib.text import chat, problems

SETTINGS = {
    "logits": {"rows": 6, "k": 8, "batch_size": 4},
    "multi_teacher": {"k": 8, "batch_size": 3},
    "solutions": {"count": 12, "attempts": 2, "batch_size": 5},
    "llama_cpp": {"count": 12, "attempts": 2, "batch_size": 5},
    "labels": {"context": 256},
    "rewarded": {"batch_size": 5},
    "steps": {"group": 2, "batch_size": 6, "max_new_tokens": 8},
    "rollouts": {"count": 12, "group": 2, "batch_size": 6},
    "constitution": {"principles": ["Be brief."], "count": 6, "temperature": 2.0, "max_new_tokens": 24},
    "endpoint": {"count": 12, "attempts": 2, "batch_size": 5, "concurrency": 2},
}


SERVED = ("endpoint", "constitution")
NO_SOLUTIONS = ("logits", "multi_teacher", "labels", "rollouts", "rewarded", "steps", "constitution")


@pytest.fixture(params=params.techniques("traces"))
def name(request):
    return request.param


def make(name, **settings):
    parents = {"source": "a/b"} if name in SERVED else {"model": "a/b", "source": "a/b"}
    return params.technique_class("traces", name)(method=name, **parents, **SETTINGS[name] | settings)


@pytest.fixture
def source(name, asked, rows, taught, tokenizer, tmp_path):
    """A folder with what a technique is asked about: token rows, problems or another recording."""
    folder = tmp_path / "source"
    tokens.save(folder / "tokens", {"vocab_size": 512}, train=rows.numpy().astype("uint16"))
    with files.writing(folder / "records") as place:
        if name == "multi_teacher":
            traces.save(place, {"technique": {"temperature": 2.0}}, make("logits").record(taught, folder))
        else:
            replies = {"liked": True, "stopped": True, "tokens": []}
            labelled = {"labels": ["yes", "no"], "template": "{text}"}
            kind = {"labels": labelled, "rewarded": replies, "steps": replies | {"known": "#### Yes"}}.get(name, {})
            rows = [row | kind for row in asked]
            if name == "steps":
                tokens_of = [chat.chat_ids(tokenizer, row["prompt"], row["solution"]) for row in rows]
                begins = [len(chat.prompt_ids(tokenizer, row["prompt"])) for row in rows]
                rows = [row | {"tokens": ids[n:]} for row, ids, n in zip(rows, tokens_of, begins, strict=True)]
            records.save(place, train=rows)
    return folder


@pytest.fixture
def record(name, request, source, taught, tokenizer, tmp_path):
    """record(place, **settings): what it writes; teachers are opened as the stage does, of a model artefact."""

    def run(place, **settings):
        if name in SERVED:
            settings["url"] = request.getfixturevalue("llama_server")
        folder = tmp_path / "teacher"
        if name == "llama_cpp":
            folder = request.getfixturevalue("gguf_folder")
        elif not folder.is_dir():
            models.save(taught, tokenizer, folder)
        technique = make(name, **settings)
        return technique.record(technique.open(folder, tmp_path / place), source)

    return run


def test_the_same_seed_gives_the_same_bytes(record, tmp_path):
    for name in ("one", "two"):
        with files.writing(tmp_path / name / "records") as folder:
            said = traces.save(folder, {}, record(f"journal-{name}"))
        assert said.get("solutions", said.get("rows")) > 0
    assert files.digest(tmp_path / "one") == files.digest(tmp_path / "two")


def test_kept_solutions_are_right_by_the_scorer(name, record, asked):
    """The teacher knows one answer: only problems with that answer are kept, each once."""
    if name in NO_SOLUTIONS:
        pytest.skip("no solutions")
    kept = list(record("journal"))
    right = {row["id"] for row in asked if row["answer"] == "Yes"}
    assert {row["id"] for row in kept} <= right and len({row["id"] for row in kept}) == len(kept)
    assert all(problems.correct(row, row["solution"]) and row["chosen_by"] == "verifier" for row in kept)


def test_greedy_every_runtime_keeps_the_same(name, record, asked):
    """Of all problems exactly those with the answer the teacher knows, whatever it runs in."""
    if name in NO_SOLUTIONS:
        pytest.skip("no solutions")
    kept = {row["id"]: row["solution"] for row in record("journal", temperature=0, attempts=1, count=20)}
    assert kept == {row["id"]: "#### Yes" for row in asked if row["answer"] == "Yes"}


def test_recorded_distributions_are_the_live_teachers(tiny, rows, tmp_path):
    """Masses of the tiers 0 | 1 | 2-3 | 4-7 and the token numbers, against the teacher; its own KL said twice."""
    tokens.save(tmp_path / "source/tokens", {"vocab_size": 512}, train=rows.numpy().astype("uint16"))
    with files.writing(tmp_path / "t") as folder:
        traces.save(folder, {}, make("logits").record(tiny, tmp_path / "source"))
    batch = traces.batches(tmp_path / "t", 6)(0)
    assert torch.equal(batch["ids"], rows[:6])
    with torch.no_grad():
        live = (tiny(input_ids=rows[:6]).logits / 2.0).log_softmax(-1)
    top = live.topk(8)
    assert torch.equal(batch["index"], top.indices.sort(-1).values)
    said = torch.zeros_like(live).scatter(-1, batch["index"], batch["logprob"].exp()).gather(-1, top.indices)
    for tier in (slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 8)):
        torch.testing.assert_close(said[..., tier].sum(-1), top.values[..., tier].exp().sum(-1), rtol=0.05, atol=0)
    metrics = make("logits").measure(tiny, tmp_path / "t")
    rest = (1 - said.sum(-1, keepdim=True)) / (live.shape[-1] - 8)
    whole = rest.expand(live.shape).scatter(-1, batch["index"], batch["logprob"].exp())
    assert metrics["kl_to_full"] == pytest.approx((live.exp() * (live - whole.log())).sum(-1).mean().item(), rel=1e-3)
    assert 0 <= metrics["kl_of_code"] < 0.01


def test_k_beyond_the_vocabulary_is_refused(tiny, rows, tmp_path):
    tokens.save(tmp_path / "tokens", {"vocab_size": 512}, train=rows.numpy())
    with pytest.raises(UserError, match="k is 512, but the teacher's vocabulary has only 512 tokens"):
        next(make("logits", k=512).record(tiny, tmp_path))


def test_greedy_attempts_that_are_all_the_same_are_refused():
    entry = {"method": "solutions", "model": "a/b", "source": "a/b", "count": 1, "temperature": 0}
    with pytest.raises(UserError, match="attempts is 2, but at temperature 0 all are the same: write `attempts: 1`"):
        params.technique("traces", "mine", entry)
