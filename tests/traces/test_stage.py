"""The stage as DVC calls it: a recording, and another teacher that joins it through its folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import models, tokens, traces
from stages.traces import __main__ as stage

PARAMS = """
tokenize:
  bpe: {}
pretrain:
  one: {}
traces:
  one: {method: logits, model: pretrain/one, source: tokenize/bpe, rows: 5, k: 8}
  both: {method: multi_teacher, model: pretrain/one, source: traces/one, k: 8, weight: 0.25}
  text: {method: solutions, model: pretrain/one, source: tokenize/bpe, count: 3, choose: first, max_new_tokens: 4}
"""


@pytest.fixture
def teachers(tmp_path, monkeypatch, rows, tokenizer, llama):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(PARAMS)
    files.write_json(Path("code.json"), {})
    Path("problems/records").mkdir(parents=True)
    Path("problems/records/train.jsonl").write_text('{"prompt": "Say 7"}\n')
    for seed in (0, 1):
        models.save(llama(len(tokenizer), seed=seed), tokenizer, Path(f"teacher-{seed}"))
    about = {"vocab_size": 512, "context": 64, "tokenizer": files.digest(Path("teacher-0/tokenizer.json"))}
    tokens.save(Path("bpe/tokens"), about, train=rows.numpy().astype(np.uint16))


def run(variant, teacher, source):
    given = {"model": teacher, "source": source, "code": "code.json", "out": variant, "checkpoints": "kept"}
    stage.main(variant, **{name: Path(path) for name, path in given.items()})


def first(variant):
    return traces.batches(Path(variant, "records"), 5)(0)


@pytest.mark.slow
def test_another_teacher_joins_a_recording(teachers, rows):
    run("one", "teacher-0", "bpe")
    run("both", "teacher-1", "one")
    one, both = first("one"), first("both")
    assert torch.equal(one["ids"], both["ids"]) and both["index"].shape == one["index"].shape
    said = json.loads(Path("both/metrics.json").read_text())
    assert (said["rows"], said["tokens"]) == (5, 5 * 64)
    with torch.no_grad():
        live = [(models.load(Path(f"teacher-{n}"))(rows[:5]).logits / 2.0).softmax(-1) for n in (0, 1)]
    known = (both["index"][..., :, None] == one["index"][..., None, :]).any(-1)  # p was recorded of these
    expected = (0.75 * live[0] + 0.25 * live[1]).gather(-1, both["index"])
    assert known.float().mean() > 0.2
    torch.testing.assert_close(both["logprob"].float().exp()[known], expected[known], atol=1e-3, rtol=0)


@pytest.mark.slow
def test_a_recording_of_another_tokenizer_is_refused_before_anything_is_loaded(teachers, monkeypatch):
    run("one", "teacher-0", "bpe")
    about = Path("one/records/about.json")
    files.write_json(about, files.read_json(about) | {"tokenizer": "another's"})
    monkeypatch.setattr(models, "load", lambda _: pytest.fail("too late"))
    with pytest.raises(UserError, match="one/records was recorded with tokenizer another's; that of this variant is"):
        run("both", "teacher-1", "one")


@pytest.mark.slow
def test_what_later_stages_check_is_in_the_recording(teachers):
    run("one", "teacher-0", "bpe")
    run("both", "teacher-1", "one")
    run("text", "teacher-0", "problems")
    rows = {"tokens": files.digest(Path("bpe/tokens")), "tokenizer": files.digest(Path("teacher-0/tokenizer.json"))}
    traces.require(Path("one/records"), teacher=files.digest(Path("teacher-0")), **rows)
    traces.require(Path("both/records"), teacher=files.digest(Path("teacher-1")), **rows)
    assert traces.about(Path("text/records")).keys() == {"technique", "teacher"}
    said = json.loads(Path("one/metrics.json").read_text())
    assert 0 < said["kl_of_code"] < said["kl_to_full"]


@pytest.mark.slow
def test_rows_of_another_tokenizer_are_refused_before_anything_is_loaded(teachers, monkeypatch):
    files.write_json(Path("bpe/tokens/tokens.json"), {"tokenizer": "0" * 64})
    monkeypatch.setattr(models, "load", lambda _: pytest.fail("too late"))
    with pytest.raises(UserError, match="the vocabularies differ: bpe/tokens has tokenizer 000000000000"):
        run("one", "teacher-0", "bpe")
