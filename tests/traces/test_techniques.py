"""What every trace technique must hold. A new file in stages/traces/ is picked up here."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from stages.data import problems as source
from stages.lib import artefacts, params, problems, traces

SETTINGS = {
    "logits": {"rows": 6, "k": 8, "batch_size": 4},
    "multi_teacher": {"k": 8, "batch_size": 3},
    "solutions": {"count": 12, "attempts": 2, "batch_size": 5},
}


@pytest.fixture(scope="module")
def asked():
    p = source.Params(method="problems", source="x", licence="none", families={"syllogism": {}}, per_family=20)
    return list(source.read(Path("stages/data/_worked.py"), p))


@pytest.fixture(params=params.techniques("traces"))
def technique(request):
    return import_module(f"stages.traces.{request.param}")


def record(technique, tiny, tokenizer, asked, rows):
    name = technique.__name__.rsplit(".", 1)[1]
    p = technique.Params(method=name, model="a/b", problems="a/b", tokens="a/b", **SETTINGS[name])
    return technique.record(tiny, tokenizer, asked, rows.numpy().astype("uint16"), p)


def test_the_same_seed_gives_the_same_bytes(technique, tiny, tokenizer, asked, rows, tmp_path):
    if technique.__name__.endswith("multi_teacher"):
        from stages.traces import logits

        asked = tmp_path / "base"
        with artefacts.writing(asked) as folder:
            traces.save(folder, {"technique": {"temperature": 2.0}}, record(logits, tiny, tokenizer, [], rows))
    for name in ("one", "two"):
        with artefacts.writing(tmp_path / name) as folder:
            traces.save(folder, {}, record(technique, tiny, tokenizer, asked, rows))
    assert artefacts.digest(tmp_path / "one") == artefacts.digest(tmp_path / "two")


def test_recorded_distributions_are_the_live_teachers(tiny, tokenizer, asked, rows, tmp_path):
    from stages.traces import logits

    with artefacts.writing(tmp_path / "t") as folder:
        said = traces.save(folder, {}, record(logits, tiny, tokenizer, asked, rows))
    assert said["rows"] == 6 and said["tokens"] == 6 * 64
    batch = traces.batches(tmp_path / "t", 6)(0)
    assert torch.equal(batch["ids"], rows[:6])
    with torch.no_grad():
        live = (tiny(input_ids=rows[:6]).logits / 2.0).log_softmax(-1)
    torch.testing.assert_close(live.gather(-1, batch["index"]), batch["logprob"].float(), atol=5e-3, rtol=0)
    left_out = live.scatter(-1, batch["index"], float("-inf")).max(-1).values
    assert (left_out <= live.gather(-1, batch["index"]).min(-1).values + 1e-6).all(), "the k likeliest are recorded"


def test_kept_solutions_are_right_by_the_scorer(tokenizer, asked, tiny, tmp_path):
    """A teacher that was taught one answer: exactly the problems with that answer are kept."""
    from functools import partial

    from stages.lib import replies, training
    from stages.lib.training import Training
    from stages.traces import solutions

    taught = [row | {"solution": "#### Yes"} for row in asked]
    batch = replies.batches(tokenizer, taught, 256, 2, seed=0)
    p = Training(steps=80, batch_size=8, lr=5e-3, precision="float32")
    training.fit(tiny, batch, partial(replies.loss, tiny), p, [], tmp_path / "c")
    greedy = solutions.Params(
        method="solutions", model="a/b", problems="a/b", tokens="a/b", count=20, attempts=1, temperature=0
    )
    kept = list(solutions.record(tiny, tokenizer, asked, None, greedy))
    assert {row["id"] for row in kept} == {row["id"] for row in asked if row["answer"] == "Yes"}
    assert all(problems.correct(row, row["solution"]) for row in kept)


def test_another_tokenizers_recording_is_refused(tmp_path):
    artefacts.write_json(tmp_path / "about.json", {"tokenizer": "a" * 64})
    with pytest.raises(SystemExit, match="recorded with tokenizer aaaaaaaaaaaa; the model's is bbbbbbbbbbbb"):
        traces.require_tokenizer(tmp_path, "b" * 64)
