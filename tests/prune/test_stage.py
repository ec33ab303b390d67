"""The stage as DVC calls it: what it counts, and what it refuses before it works."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.lib import artefacts, calibrate, losses, models, tokens
from stages.prune import __main__ as stage

PARAMS = """
tokenize:
  bpe: {method: bpe, documents: tokenize/bpe, problems: tokenize/bpe}
prune:
  magnitude-2of4: {method: magnitude, model: prune/wanda-50, tokens: tokenize/bpe, pattern: 2of4}
  wanda-50: {method: wanda, model: prune/wanda-50, tokens: tokenize/bpe, sparsity: 0.5, calibration: {rows: 8, seed: 1}}
"""


def test_zeros_are_counted_over_what_may_change_and_over_all(tiny):
    tiny.model.embed_tokens.weight.data += 1  # torch zeroes the row of the padding token
    for layer in calibrate.linears(tiny).values():
        layer.weight.data[0] = 0
    seen = stage.zeros(tiny)
    rows = sum(layer.in_features for layer in calibrate.linears(tiny).values())
    total = sum(layer.weight.numel() for layer in calibrate.linears(tiny).values())
    assert seen["sparsity"] == pytest.approx(rows / total)
    assert seen["sparsity_model"] == pytest.approx(rows / tiny.num_parameters())  # the tied head once
    assert seen["nonzero_parameters"] == tiny.num_parameters() - rows


@pytest.fixture
def project(tmp_path, monkeypatch, rows, model_folder):
    """A folder with params.yaml and token rows, as the stage finds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(PARAMS)
    numbers = rows.numpy().astype(np.uint16)
    about = {"vocab_size": 512, "context": 64, "tokenizer": artefacts.digest(model_folder / "tokenizer.json")}
    tokens.save(Path("tokens"), about, train=numbers, held_out=numbers)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["magnitude-2of4", "wanda-50"])
def test_prunes_and_measures_the_same_twice(project, model_folder, rows, variant):
    digests = []
    for name in ("once", "twice"):
        stage.main(variant, model=model_folder, tokens=Path("tokens"), out=Path(name))
        digests.append((artefacts.digest(Path(name, "model")), artefacts.digest(Path(name, "metrics.json"))))
    assert digests[0] == digests[1]
    seen, pruned = json.loads(Path("once/metrics.json").read_text()), models.load(Path("once/model"))
    assert seen["sparsity"] == pytest.approx(0.5)
    assert seen["loss_before"] == pytest.approx(losses.evaluate(models.load(model_folder), rows))
    assert seen["loss_after"] == pytest.approx(losses.evaluate(pruned, rows))
    assert torch.equal(pruned.lm_head.weight, models.load(model_folder).lm_head.weight)


@pytest.mark.slow
def test_another_vocabulary_is_refused_and_nothing_is_written(project, model_folder):
    artefacts.write_json(Path("tokens/tokens.json"), {"tokenizer": "0" * 64})
    with pytest.raises(SystemExit, match="the vocabularies differ: tokens has tokenizer 000000000000"):
        stage.main("wanda-50", model=model_folder, tokens=Path("tokens"), out=Path("out"))
    assert not Path("out").exists() or not list(Path("out").iterdir())
