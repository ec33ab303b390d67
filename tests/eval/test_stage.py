"""The whole stage on a small model: the files that DVC and the report rely on."""

import json
from pathlib import Path

import pytest

from stages.lib.frame.errors import UserError
from stages.lib.store import records

PARAMS = """
data: {corpus: {}, problems: {}}
pretrain: {teacher: {}}
eval:
  models: {teacher: pretrain/teacher}
  bits_per_byte: {records: data/corpus, documents: 4}
  accuracy: {records: data/problems, max_new_tokens: 8}
  speed: {records: data/corpus, new_tokens: 16, repeats: 3, energy_seconds: 0}
"""


@pytest.fixture(params=["transformer", "state space"])
def folder(request, model_folder, tokenizer, tmp_path):
    if request.param == "transformer":
        return model_folder
    from stages.lib.store import models
    from stages.pretrain import state_space

    p = {"hidden": 32, "layers": 2, "head_dim": 16, "state": 8}
    student = state_space.StateSpace(method="state_space", tokens="a/b", **p).build(tokenizer)
    models.save(student, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def evaluate(folder, documents, problems, tmp_path, monkeypatch):
    """evaluate(measure): the folder that the stage wrote."""
    from stages.eval.__main__ import main

    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(PARAMS)
    Path("code.json").write_text("{}")
    for name, rows in (("documents", documents), ("problems", problems)):
        Path(name).mkdir()
        records.save(Path(name), held_out=rows)

    def run(measure: str, **more) -> Path:
        paths = {
            "model": folder,
            "records": tmp_path / ("problems" if measure == "accuracy" else "documents"),
            "code": tmp_path / "code.json",
            "out": tmp_path / "out" / measure,
        }
        main(measure, "teacher", **paths | more, params_file=Path("settings.yaml"))
        return paths["out"]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["accuracy", "bits_per_byte"])
def test_writes_the_same_metrics_and_samples_each_time(measure, evaluate):
    written = []
    for _ in range(2):
        out = evaluate(measure)
        written.append([(out / name).read_bytes() for name in ("metrics.json", "samples.json")])

    assert written[0] == written[1]
    assert measure in json.loads(written[0][0])
    assert "seconds" in json.loads((out / "timings.json").read_text())


@pytest.mark.slow
def test_speed_keeps_size_and_timings_apart(evaluate, folder):
    from safetensors.torch import load_file

    out = evaluate("speed")
    metrics, timings = (json.loads((out / name).read_text()) for name in ("metrics.json", "timings.json"))
    assert metrics["parameters"] == sum(w.numel() for w in load_file(folder / "model.safetensors").values())
    assert metrics["bits_per_weight"] == 32
    assert metrics["bytes"] == (folder / "model.safetensors").stat().st_size
    assert {"decode_tokens_per_second", "prefill_tokens_per_second", "peak_memory_bytes", "seconds"} <= set(timings)
    assert not set(metrics) & set(timings)
    assert not (out / "samples.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["transformer"], indirect=True)
def test_refuses_empty_records_before_it_loads_the_model(evaluate, tmp_path):
    records.save(tmp_path, held_out=[])

    with pytest.raises(UserError, match="held_out.jsonl is empty"):
        evaluate("accuracy", records=tmp_path, model=tmp_path)
