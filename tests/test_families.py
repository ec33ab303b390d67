"""The benchmark of families on three of them: what it finds, and that nothing crashes or is wrong."""

import json

import pytest

from benchmarks import families

WORKS = ("align", "prune.wanda", "prune.depth", "quantize.nf4", "export.safetensors", "eval")


@pytest.mark.slow
def test_a_dense_model_a_mixture_and_a_state_space(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    left_out = ("export.openvino", "export.onnx")  # minutes of tracing
    asked = [f"{section}.{variant}" for section, variant in families.variants()]
    out = tmp_path / "families.json"
    names = ",".join(name for name in asked if name not in left_out)
    families.main(families="gemma2,mixtral,mamba2", techniques=names, out=out)
    found = json.loads(out.read_text())
    outcomes = {name: each for name, each in found.items() if name.split(".")[0] in ("gemma2", "mixtral", "mamba2")}
    assert not [name for name, each in outcomes.items() if str(each).startswith(("crash", "wrong"))]
    for name in WORKS:
        own = {key: each for key, each in outcomes.items() if key.startswith(f"gemma2.{name}") and ".kl" not in key}
        assert own and set(own.values()) == {"works"}, own
    assert outcomes["mixtral.quantize.rtn"] == outcomes["mamba2.quantize.nf4"] == "works"
    assert "a mixtral; nf4 can't pack its experts" in outcomes["mixtral.quantize.nf4"]
    assert outcomes["mixtral.quantize.int8.kl"] < outcomes["mixtral.quantize.rtn.kl"]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("mixtral ") and "www" in line for line in lines)
