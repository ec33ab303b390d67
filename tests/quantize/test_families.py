"""Experts, Conv1Ds and other networks that are no llama: the stage on each, and the file as transformers reads it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks._families import make
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy, losses
from stages.lib.store import dense, models, tokens
from stages.quantize import __main__ as stage

GIVEN = {"model": "pretrain/base", "tokens": "tokenize/bpe"}
PARAMS = """
tokenize: {bpe: {}}
pretrain: {base: {}}
quantize:
  rtn: {method: rtn, group_size: 32, model: pretrain/base, tokens: tokenize/bpe}
  wide: {method: rtn, group_size: 32, bits: 3, dtype: bfloat16, model: pretrain/base, tokens: tokenize/bpe}
  gptq: {method: gptq, group_size: 32, model: pretrain/base, tokens: tokenize/bpe, calibration: {rows: 4}}
  int8: {method: int8, model: pretrain/base, tokens: tokenize/bpe}
  w8a8: {method: int8, activations: true, model: pretrain/base, tokens: tokenize/bpe}
  nf4: {method: nf4, model: pretrain/base, tokens: tokenize/bpe}
  awq: {method: awq, group_size: 32, model: pretrain/base, tokens: tokenize/bpe, calibration: {rows: 4}}
  smoothquant: {method: smoothquant, model: pretrain/base, tokens: tokenize/bpe, calibration: {rows: 4}}
  mixed: {method: mixed, group_size: 32, model: pretrain/base, tokens: tokenize/bpe, calibration: {rows: 4}}
"""
MERGED = ["mixtral", "qwen3_moe", "deepseek_v3", "qwen3_next"]  # whose checkpoints hold experts one by one


@pytest.fixture
def quantize(tmp_path, monkeypatch, rows, tokenizer):
    """quantize(family, variant): the parent, the model as read back, and metrics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text(PARAMS)
    Path("code.json").write_text("{}")

    def start(family, variant):
        models.save(make(family, tokenizer), tokenizer, Path("model"))
        about = {"vocab_size": 512, "context": 64, "tokenizer": files.digest(Path("model/tokenizer.json"))}
        numbers = rows.numpy().astype(np.uint16)
        tokens.save(Path("tokens"), about, train=numbers, held_out=numbers)
        places = {"model": Path("model"), "tokens": Path("tokens"), "code": Path("code.json"), "out": Path("out")}
        stage.main(variant, **places)
        return models.load(Path("model")), models.load(Path("out/model")), files.read_json(Path("out/metrics.json"))

    return start


@pytest.mark.slow
@pytest.mark.parametrize("family", MERGED)
@pytest.mark.parametrize(("variant", "bits"), [("rtn", 4), ("wide", 3), ("gptq", 4), ("int8", 8)])
def test_every_expert_is_rounded_and_no_router(quantize, family, variant, bits):
    before, after, metrics = quantize(family, variant)
    known, group = anatomy.matrices(before), 32 if bits < 8 else None
    after_matrices = anatomy.matrices(after)
    experts = {name: matrix for name, matrix in known.items() if matrix.expert is not None}
    assert len(experts) >= 2 * 3 * 4
    for name, matrix in experts.items():
        weight, rounded = matrix.weight, after_matrices[name].weight
        groups = rounded.unflatten(1, (-1, group or rounded.shape[1]))
        assert max(len(levels.unique()) for levels in groups.flatten(0, 1)) <= 2**bits
        scale = weight.unflatten(1, (-1, group or weight.shape[1])).abs().amax(-1, keepdim=True) / (2**bits - 1) * 2
        step = scale.expand_as(groups).flatten(1)
        worst = 0.51 if variant != "gptq" else 8  # of a step; gptq moves weights to make up for others
        assert ((rounded - weight).abs() <= worst * step + 1e-6).all() and not torch.equal(rounded, weight)
    for name, router in anatomy.routers(before).items():
        kept = anatomy.routers(after)[name].weight
        torch.testing.assert_close(kept, router.weight, atol=1e-3, rtol=8e-3)  # the rest's type
    plain, ids = dense.load(Path("out/model")), torch.arange(64)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, after(ids).logits, atol=1e-4, rtol=1e-4)
    multiplying = sum(matrix.weight.numel() for matrix in known.values())
    assert bits < metrics["bits_per_weight"] < bits + 2.5
    assert metrics["bits_per_weight_model"] * before.num_parameters() > bits * multiplying


@pytest.mark.slow
def test_a_conv1d_is_packed_by_nf4_and_unpacked_the_right_way_round(quantize):
    before, after, metrics = quantize("gpt2", "nf4")
    assert 4 < metrics["bits_per_weight"] < 5.5 and metrics["kl"] < 0.1  # a matrix comes with 1.3 kB of tables
    plain, ids = dense.load(Path("out/model")), torch.arange(64)[None]
    assert plain.transformer.h[0].attn.c_proj.weight.shape == before.transformer.h[0].attn.c_proj.weight.shape
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, after(ids).logits, atol=1e-4, rtol=1e-4)
    models.save(plain, models.load_tokenizer(Path("out/model")), Path("again"))
    with torch.no_grad():
        torch.testing.assert_close(models.load(Path("again"))(ids).logits, after(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["phi3", "gpt_neox", "falcon_h1", "bamba"])
@pytest.mark.parametrize("variant", ["rtn", "nf4"])
def test_other_networks_are_read_back_as_they_were_measured(quantize, family, variant, rows):
    """The stage compares losses; here the file once more, by transformers alone."""
    _, after, metrics = quantize(family, variant)
    assert losses.evaluate(after, rows) == pytest.approx(metrics["loss_after"], abs=1e-5)
    assert metrics["bits_per_weight"] < 6.5


@pytest.mark.parametrize(
    ("family", "variant", "message"),
    [
        ("gpt_oss", "rtn", "a gpt_oss, whose experts transformers reads in one piece, never packed: .* as GGUF"),
        ("granitemoe", "nf4", "a granitemoe, whose experts transformers reads in one piece"),
        (
            "mixtral",
            "nf4",
            r"nf4 can't pack its experts \(model.layers.0.mlp.experts.gate_up_proj.0\): take rtn",
        ),
        ("mixtral", "w8a8", "int8 can't pack its experts .*: take rtn, gptq or int8 without activations"),
        ("qwen3_moe", "mixed", "mixed can't pack its experts"),
        (
            "gpt2",
            "int8",
            r"compressed-tensors can't pack its Conv1Ds \(transformer.h.0.attn.c_attn\): take nf4",
        ),
        ("mamba2", "gptq", "a mamba2, which transformers can't read packed by compressed-tensors: take nf4"),
        ("bamba", "awq", "pretrain/base: awq doesn't know which inputs it may scale in bamba: take gptq or rtn"),
        ("olmo2", "smoothquant", "smoothquant doesn't know which inputs it may scale in olmo2"),
    ],
)
def test_what_no_file_could_hold_is_refused_before_work(quantize, family, variant, message):
    with pytest.raises(UserError, match=rf"{message}"):
        quantize(family, variant)
    assert not Path("out/model").exists()
