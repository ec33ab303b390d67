"""The whole stage on a small model: the files that DVC and the report rely on."""

import json

import pytest

from stages.lib.frame.errors import UserError
from stages.lib.store import records

PARAMS = """
eval:
  teacher:
    model: eval/teacher
    documents: eval/teacher
    problems: eval/teacher
    bits_per_byte: {documents: 4}
    accuracy: {max_new_tokens: 8}
    speed: {new_tokens: 4, repeats: 1, energy_seconds: 0}
"""


@pytest.fixture(params=["transformer", "state space"])
def folder(request, model_folder, tokenizer, tmp_path):
    if request.param == "transformer":
        return model_folder
    from stages.lib.store import models
    from stages.pretrain import state_space

    p = {"hidden": 32, "layers": 2, "head_dim": 16, "state": 8}
    student = state_space.build(tokenizer, state_space.Params(method="state_space", tokens="a/b", **p))
    models.save(student, tokenizer, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_writes_the_same_metrics_and_samples_each_time_and_timings_apart(data, folder, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from stages.eval.__main__ import main

    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    documents, problems, out = tmp_path / "documents", tmp_path / "problems", tmp_path / "out"
    for place, rows in ((documents, data.documents), (problems, data.problems)):
        place.mkdir()
        records.save(place, held_out=rows)

    written = []
    for _ in range(2):
        main("teacher", model=folder, documents=documents, problems=problems, out=out)
        written.append([(out / name).read_bytes() for name in ("metrics.json", "samples.json")])

    assert written[0] == written[1]
    metrics, timings = (json.loads((out / name).read_text()) for name in ("metrics.json", "timings.json"))
    assert metrics["parameters"] == sum(w.numel() for w in load_file(folder / "model.safetensors").values())
    assert metrics["bits_per_weight"] == 32
    assert metrics["bytes"] == (folder / "model.safetensors").stat().st_size
    assert {"bits_per_byte", "accuracy", "accuracy.gcd"} <= set(metrics)
    assert {"decode_tokens_per_second", "prefill_tokens_per_second"} <= set(timings)
    assert not set(metrics) & set(timings)


def test_refuses_empty_records_before_it_loads_the_model(tmp_path):
    from stages.eval.parts import held_out

    records.save(tmp_path, held_out=[])

    with pytest.raises(UserError, match="held_out.jsonl is empty"):
        held_out.load(tmp_path, tmp_path)
