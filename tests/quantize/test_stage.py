"""The stage as DVC calls it: bits counted by hand, the file measured as reloaded, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import models, tokens
from stages.quantize import __main__ as stage
from stages.quantize import int8
from stages.quantize.parts import compressed

PARENTS = {"model": "quantize/int8", "tokens": "tokenize/bpe"}
PARAMS = """
tokenize:
  bpe: {method: bpe, documents: tokenize/bpe, problems: tokenize/bpe}
quantize:
  gptq: {method: gptq, bits: 3, model: quantize/int8, tokens: tokenize/bpe, calibration: {rows: 16, seed: 0}}
  nf4: {method: nf4, model: quantize/int8, tokens: tokenize/bpe}
  mixed: {method: mixed, bits: 4.5, model: quantize/int8, tokens: tokenize/bpe, calibration: {rows: 16, seed: 0}}
  smoothquant: {method: smoothquant, model: quantize/int8, tokens: tokenize/bpe, calibration: {rows: 4, seed: 0}}
  int8: {method: int8, model: quantize/int8, tokens: tokenize/bpe}
  again: {method: int8, model: quantize/int8, tokens: tokenize/bpe}
  awq: {method: awq, model: quantize/int8, tokens: tokenize/bpe, grid: 4, calibration: {rows: 4, seed: 0}}
"""


def test_bits_are_those_of_the_file(model_folder, tokenizer, tmp_path):
    """int8: a byte a weight, a 16-bit scale a row, the shape in 16 bytes; hidden 256, FFN 512, two layers."""
    dense = models.load(model_folder)
    net = int8.Int8(method="int8", **PARENTS).quantize(models.load(model_folder), torch.empty(0, 0))
    models.save(compressed.pack(net, torch.float16), tokenizer, tmp_path / "model")
    rows = 2 * (256 + 128 + 128 + 256 + 512 + 512 + 256)
    weights = 2 * (256 * (256 + 128 + 128 + 256) + 3 * 256 * 512)
    stored = weights + 2 * rows + 14 * 16
    rest = 2 * (512 * 256 + 5 * 256)  # embedding and norms
    seen = stage.size(dense, tmp_path / "model")
    assert seen["bits_per_weight"] == pytest.approx(8 * stored / weights)
    assert seen["bits_per_weight_model"] == pytest.approx(8 * (stored + rest) / dense.num_parameters())
    assert seen["bytes"] == (tmp_path / "model" / "model.safetensors").stat().st_size


def test_a_file_that_says_something_else_or_is_no_smaller_is_refused(model_folder):
    stage.check("int8", 2.0, {"loss_after": 2.00001, "bytes": 1000}, model_folder)
    with pytest.raises(UserError, match=r"quantize.int8: reloaded, the model has loss 2.1, in memory it had 2.0"):
        stage.check("int8", 2.0, {"loss_after": 2.1, "bytes": 1000}, model_folder)
    with pytest.raises(UserError, match="loss nan"):
        stage.check("int8", 2.0, {"loss_after": float("nan"), "bytes": 1000}, model_folder)
    with pytest.raises(UserError, match="takes 1,000,000,000 bytes"):
        stage.check("int8", 2.0, {"loss_after": 2.0, "bytes": 10**9}, model_folder)


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


def quantize(variant, model, out):
    stage.main(variant, model=model, tokens=Path("tokens"), code=Path("code.json"), out=Path(out))
    return json.loads(Path(out, "metrics.json").read_text())


VARIANTS = [("int8", 8.06), ("smoothquant", 8.06), ("awq", 4.16), ("nf4", 4.25), ("gptq", 3.15), ("mixed", 4.5)]


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "bits"), VARIANTS)
def test_quantizes_quietly_and_the_same_twice(project, model_folder, variant, bits, capfd):
    seen = quantize(variant, model_folder, "once")
    assert quantize(variant, model_folder, "twice") == seen
    assert files.digest(Path("once/model")) == files.digest(Path("twice/model"))
    assert seen["bits_per_weight"] == pytest.approx(bits, abs=0.02)
    assert 0 < seen["kl"] < 0.1 and seen["loss_after"] != seen["loss_before"]
    printed = capfd.readouterr()
    assert not printed.out and "it/s" not in printed.err, printed
    assert {path.name for path in Path().iterdir()} <= {
        "params.yaml",
        "code.json",
        "tokens",
        "once",
        "twice",
        "mlflow.db",
        "mlflow.db.lock",
        "mlruns",
    }


def without_linears(model_folder):
    from transformers import GPT2Config, GPT2LMHeadModel

    net = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_embd=32, n_layer=1, n_head=2))
    models.save(net, models.load_tokenizer(model_folder), Path("gpt2"))


@pytest.mark.slow
def test_what_is_refused_leaves_nothing(project, model_folder):
    quantize("int8", model_folder, "first")
    with pytest.raises(UserError, match="quantize.again: its parent is quantized already"):
        quantize("again", Path("first/model"), "second")
    without_linears(model_folder)
    refusal = "quantize.int8: quantize/int8 is a gpt2; compressed-tensors can't pack its Conv1Ds"
    with pytest.raises(UserError, match=refusal):
        quantize("int8", Path("gpt2"), "second")
    files.write_json(Path("tokens/tokens.json"), {"tokenizer": "0" * 64})
    with pytest.raises(UserError, match="the vocabularies differ: tokens has tokenizer 000000000000"):
        quantize("int8", model_folder, "third")
    assert not any(list(Path(name).glob("*")) for name in ("second", "third"))
