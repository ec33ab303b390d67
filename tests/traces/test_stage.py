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

PARENTS = "model: traces/one, problems: traces/one, tokens: traces/one"
PARAMS = f"""
traces:
  one: {{method: logits, {PARENTS}, rows: 5, k: 8}}
  both: {{method: multi_teacher, {PARENTS}, k: 8, weight: 0.25}}
"""


@pytest.fixture
def teachers(tmp_path, monkeypatch, rows, tokenizer, llama):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(PARAMS)
    Path("problems").mkdir()
    Path("problems/train.jsonl").write_text('{"prompt": "Say 7"}\n')
    for seed in (0, 1):
        models.save(llama(len(tokenizer), seed=seed), tokenizer, Path(f"teacher-{seed}"))
    about = {"vocab_size": 512, "context": 64, "tokenizer": files.digest(Path("teacher-0/tokenizer.json"))}
    tokens.save(Path("tokens"), about, train=rows.numpy().astype(np.uint16))


def run(variant, teacher, problems):
    given = {"model": teacher, "problems": problems, "tokens": "tokens", "out": variant, "checkpoints": "kept"}
    stage.main(variant, **{name: Path(path) for name, path in given.items()})
    return traces.batches(Path(variant, "records"), 5)(0)


@pytest.mark.slow
def test_another_teacher_joins_a_recording(teachers, rows):
    one, both = run("one", "teacher-0", "problems"), run("both", "teacher-1", "one/records")
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
    run("one", "teacher-0", "problems")
    about = Path("one/records/about.json")
    files.write_json(about, files.read_json(about) | {"tokenizer": "another's"})
    monkeypatch.setattr(models, "load", lambda _: pytest.fail("too late"))
    with pytest.raises(UserError, match="one/records was recorded with tokenizer another's; that of this variant is"):
        run("both", "teacher-1", "one/records")
