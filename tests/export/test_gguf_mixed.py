"""Types of its own for every matrix: the budget against the file, the choice against one type for all, the measurement
against a file in which one matrix alone is rounded."""

import pytest
import torch
from gguf import GGUFReader

from apps.parts.llama import Llama
from benchmarks import _families
from stages.export import gguf, gguf_mixed
from stages.export.parts import gguf_file
from stages.lib.frame.errors import UserError
from stages.lib.nets import budget, losses
from stages.lib.runtimes.base import logits
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models

PARENTS = {"model": "align/dpo", "tokens": "tokenize/bpe"}


def technique(**other):
    return gguf_mixed.GGUFMixed(method="gguf_mixed", **PARENTS, **other)


def kinds(folder):
    return {t.name: t.tensor_type.name for t in GGUFReader(folder / "model.gguf").tensors if len(t.shape) == 2}


@pytest.fixture(scope="module")
def model(source_folder):
    net = models.load(source_folder)
    with torch.no_grad():
        net.model.layers[1].mlp.down_proj.weight *= 1e-3  # nothing depends on it
    return net


def test_what_matters_gets_more_bits_and_the_budget_holds(model, tokenizer, rows, tmp_path):
    types = ("Q2_K", "Q4_K", "Q6_K", "Q8_0")
    technique(bits=4.5, types=types, measured_rows=2).write(model, tokenizer, tmp_path, rows)
    assert {file.name for file in tmp_path.iterdir()} >= {"model.gguf", "Modelfile", "tokenizer.json"}
    assert not [file for file in tmp_path.iterdir() if file.is_dir()]
    export = open_runtime(tmp_path)
    parameters, tensor_bytes = export.size()
    assert 4.3 < 8 * tensor_bytes / parameters <= 4.5
    found = kinds(tmp_path)
    assert found["blk.1.ffn_down.weight"] == "Q2_K"
    assert len(set(found.values())) > 1 and set(found.values()) <= set(types)
    assert Llama(tmp_path / "model.gguf").server.handle_completions({"prompt": [1, 5], "max_tokens": 2})["choices"]

    even = tmp_path / "even"
    even.mkdir()
    plain = gguf.GGUF(method="gguf", type="Q4_K_S", calibration={"rows": 16}, **PARENTS)
    plain.write(model, tokenizer, even, rows)
    other = open_runtime(even)
    assert other.size()[1] >= tensor_bytes  # one type for all, in no fewer bytes, says it less well
    source = dense(model)
    kl, worse = (losses.compare(source, logits(one), rows[2:])["kl"] for one in (export, other))
    assert kl < worse


def dense(model):
    return lambda ids_1T: model(ids_1T).logits.detach()


def test_the_loss_of_a_type_is_that_of_a_file_with_it(model, tokenizer, rows, tmp_path):
    """Queries, whose rows llama.cpp has in another order: what the file says is what was measured."""
    name, tensor = "model.layers.0.self_attn.q_proj", "blk.0.attn_q.weight"
    full, names = gguf_file.write(model, tokenizer, tmp_path / "full.gguf")
    assert names[f"{name}.weight"] == [tensor]
    gguf_file.quantize(full, tmp_path / "model.gguf", "Q2_K", {tensor: "Q2_K"}, {})
    gguf_file.write_beside(tokenizer, model.config, tmp_path)
    stored = {t.name: t for t in GGUFReader(tmp_path / "model.gguf").tensors}
    assert {t.tensor_type.name for t in stored.values()} == {"Q2_K", "F32"}
    seen = losses.compare(dense(model), logits(open_runtime(tmp_path)), rows[:2])["kl"]

    weight = model.get_parameter(f"{name}.weight")
    form = torch.from_numpy(gguf_file.form(weight.detach().numpy(), "Q2_K", None))
    measured = budget.sensitivities(model, rows[:2], {name: weight}, lambda *_: [form])
    assert measured[0][0] == pytest.approx(seen, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "phi3", "qwen2"])
def test_other_families_have_types_of_their_own_too(name, tokenizer, rows, tmp_path):
    """Transposed matrices, fused ones, biases."""
    sizes = {"hidden_size": 256, "n_inner": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    model = _families.make(name, tokenizer, **sizes, max_position_embeddings=64)
    technique(bits=6.5, types=("Q4_K", "Q8_0"), measured_rows=2).write(model, tokenizer, tmp_path, rows)
    export = open_runtime(tmp_path)
    parameters, tensor_bytes = export.size()
    assert 8 * tensor_bytes / parameters <= 6.5
    assert set(kinds(tmp_path).values()) == {"Q4_K", "Q8_0", *(["F32"] if name == "gpt2" else [])}  # learnt positions
    assert losses.compare(dense(model), logits(export), rows[2:])["kl"] < 0.3


@pytest.mark.slow
def test_experts_that_share_a_type_are_refused(tokenizer, rows, tmp_path):
    model = _families.make("mixtral", tokenizer)
    with pytest.raises(
        UserError, match=r"align/dpo: blk.0.ffn_.*_exps.weight is no single matrix of mixtral: choose gguf"
    ):
        technique(bits=8.5, types=("IQ4_NL", "Q8_0")).write(model, tokenizer, tmp_path, rows)


def test_rows_that_no_type_holds_and_budgets_too_small_are_refused(tiny, model, tokenizer, rows, tmp_path):
    with pytest.raises(UserError, match="rows of 64 weights, which none of .* add IQ4_NL or Q5_0 or Q8_0"):
        technique(bits=4.0, types=("Q4_K", "Q6_K")).write(tiny, tokenizer, tmp_path, rows)
    with pytest.raises(UserError, match=r"4.0 bits/weight are too few: .* take at least 4.5"):
        technique(bits=4.0, types=("Q4_K", "Q6_K")).write(model, tokenizer, tmp_path, rows)
    assert not list(tmp_path.iterdir())
