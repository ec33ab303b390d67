"""The stage as DVC calls it: what it measures, and that a refused export leaves nothing behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.export import __main__ as stage
from stages.export.gguf import GGUF
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import models, tokens

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}


class Fixed:
    """A runtime of 100 parameters in 400 bytes."""

    def size(self):
        return 100, 400


@pytest.mark.parametrize(
    ("type", "kl", "bits", "message"),
    [
        ("Q8_0", 0.3, 8, "kl 0.3 nats/token > max_kl 0.2"),
        ("Q8_0", float("nan"), 8, "kl nan"),
        ("Q8_0", 0.01, 33, "only 32.00"),
        ("F16", 0.0011, 16, "kl 0.0011 nats/token > max_kl 0.001"),  # what hardly rounds may lose hardly anything
        ("BF16", 0.011, 16, "kl 0.011 nats/token > max_kl 0.01"),
    ],
)
def test_a_strange_or_larger_file_is_refused(type, kl, bits, message, tiny):
    technique = GGUF(method="gguf", type=type, **PARENTS)
    with pytest.raises(UserError, match=message):
        stage.check("variant", technique, technique.loss(tiny), {"kl": kl, "bits_per_weight": bits}, Fixed())
    stage.check("variant", technique, technique.loss(tiny), {"kl": 0.0009, "bits_per_weight": 32.1}, Fixed())


PARAMS = """
tokenize:
  bpe: {method: bpe, documents: tokenize/bpe, problems: tokenize/bpe}
prune:
  half: {method: magnitude, model: prune/half, tokens: tokenize/bpe, sparsity: 0.5}
export:
  q4: {method: gguf, type: Q4_K_M, model: prune/half, tokens: tokenize/bpe, rows: 4}
  strict: {method: gguf, type: Q4_K_M, model: prune/half, tokens: tokenize/bpe, rows: 4, max_kl: 1.0e-9}
  f16: {method: gguf, type: F16, model: prune/half, tokens: tokenize/bpe, rows: 4}
"""


@pytest.fixture
def project(tmp_path, monkeypatch, rows, model_folder):
    """A folder with params.yaml and token rows, as the stage finds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(PARAMS)
    Path("code.json").write_text("{}")
    numbers = rows.numpy().astype(np.uint16)
    about = {"vocab_size": 512, "context": 64, "tokenizer": files.digest(model_folder / "tokenizer.json")}
    tokens.save(Path("tokens"), about, train=numbers, held_out=numbers)


def export(variant, model):
    stage.main(variant, model=model, tokens=Path("tokens"), code=Path("code.json"), out=Path("out"))
    return json.loads(Path("out/metrics.json").read_text())


@pytest.mark.slow
def test_exports_measures_and_refuses(project, model_folder):
    seen, folder = export("q4", model_folder), Path("out/model")
    assert 0 < seen["kl"] < 0.05
    assert 4.5 < seen["bits_per_weight"] < 6.6
    assert seen["bytes"] == (folder / "model.gguf").stat().st_size
    beside = {"MANIFEST.json", "Modelfile", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == {"model.gguf"} | beside
    assert (seen["format"], seen["vocabulary"], seen["context"]) == ("GGUF Q4_K_M", 512, 256)
    assert seen["architecture"] == "llama: 2 layers, width 256, 4 heads, 2 key-value heads"
    assert "llama-cli -m model.gguf" in seen["run"]

    before = files.digest(folder)
    assert export("q4", model_folder) == seen
    assert files.digest(folder) == before

    with pytest.raises(UserError, match="export.strict strays from prune/half"):
        export("strict", model_folder)
    assert files.digest(folder) == before  # the last good export is untouched

    models.load(model_folder).half().save_pretrained("halves")
    shutil.copytree(
        model_folder, "halves", ignore=shutil.ignore_patterns("*.safetensors", "config.json"), dirs_exist_ok=True
    )
    assert export("f16", Path("halves"))["bits_per_weight"] == pytest.approx(16, abs=0.1)  # not larger than its source
    assert not list(Path("out").glob(".*"))
