"""The stage as DVC calls it, where teacher and student are not alike: what works, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.distill import __main__ as stage
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate, losses
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models, records, tokens
from stages.pretrain import state_space
from stages.prune import magnitude

PARENTS = "model: distill/a, teacher: distill/a, traces: data/a, tokens: tokenize/a"
VARIANTS = {
    "a": "method: solutions",
    "live": "method: logits",
    "control": "method: logits, alpha: 1.0",
    "written": "method: on_policy, on_policy: 1.0, max_new_tokens: 8",
    "cross": "method: cross_tokenizer",
}
MAGNITUDE = {"method": "magnitude", "model": "a/b", "tokens": "a/b", "pattern": "2of4"}
SPARSE = {"recovered": "true", "forgotten": "false"}  # whether its training keeps zeros


@pytest.fixture
def project(tmp_path, monkeypatch, rows, tokenizer):
    """A folder with params.yaml, rows, solutions, and a state-space model as the student."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    lines = [
        f"  {name}: {{{more}, {PARENTS}, training: {{steps: 2, batch_size: 2}}}}" for name, more in VARIANTS.items()
    ]
    more = "method: logits, alpha: 0.5, training: {steps: 4, batch_size: 2, keep_zeros: "
    lines += [f"  {name}: {{{more}{kept}}}, {PARENTS}}}" for name, kept in SPARSE.items()]
    Path("params.yaml").write_text("\n".join(["data: {a: {}}", "tokenize: {a: {}}", "distill:", *lines]))
    p = {"hidden": 32, "layers": 2, "head_dim": 16, "state": 8, "chunk": 16}
    student = state_space.StateSpace(method="state_space", tokens="a/b", **p).build(tokenizer)
    models.save(student, tokenizer, Path("student"))
    about = {"vocab_size": 512, "context": 64, "tokenizer": files.digest(Path("student/tokenizer.json"))}
    numbers = rows.numpy().astype(np.uint16)
    tokens.save(Path("tokens"), about, train=numbers, held_out=numbers)
    files.write_json(Path("code.json"), {})
    Path("traces").mkdir()
    solved = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(20)]
    records.save(Path("traces"), train=solved)
    files.write_json(Path("traces/about.json"), {"technique": {}, "tokenizer": "another's"})  # text is anybody's


@pytest.fixture
def stranger(texts, llama, tmp_path):
    """A teacher with another vocabulary."""
    from stages.tokenize import bpe

    p = bpe.BPE(method="bpe", documents="data/corpus", problems="data/problems", vocab_size=600)
    vocabulary = p.train(texts[::9])
    models.save(llama(len(vocabulary)), vocabulary, tmp_path / "stranger")
    return tmp_path / "stranger"


def run(variant, teacher, student=Path("student")):  # noqa: B008
    places = {name: Path(name) for name in ("traces", "tokens", "out", "checkpoints")}
    stage.main(variant, model=student, teacher=teacher, code=Path("code.json"), **places)
    return json.loads(Path("out/metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["live", "written"])
def test_a_transformer_teaches_a_state_space_model(project, model_folder, variant):
    seen = run(variant, model_folder)
    assert seen["loss_after"] != seen["loss_before"] and 0 < seen["acceptance_after"] <= 1
    assert seen["student_flops"] > 0 and seen["teacher_flops"] > 0 and seen["tokens_seen"] > 0
    taught = open_runtime(Path("out/model"))
    assert len(taught.generate([[1, 2, 3], [4]], 5)[1]) == 5


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["cross", "a", "control"])
def test_a_teacher_of_another_vocabulary_teaches_where_numbers_are_not_compared(project, stranger, variant):
    seen = run(variant, stranger)
    assert seen["loss_after"] != seen["loss_before"] and "acceptance_after" not in seen
    assert (seen["teacher_flops"] > 0) == (variant == "cross")


@pytest.mark.slow
def test_a_pruned_model_is_recovered_from_its_dense_parent_and_stays_sparse(project, model_folder, rows):
    """Both trainings bring it nearer to its parent; only the one that keeps zeros leaves 2 of every 4 at zero."""
    pruned = magnitude.Magnitude(**MAGNITUDE).prune(models.load(model_folder), None)
    models.save(pruned, models.load_tokenizer(model_folder), Path("sparse"))
    before = losses.compare(models.logits(models.load(model_folder)), models.logits(pruned), rows)["kl"]
    zeros = {name: layer.weight == 0 for name, layer in calibrate.linears(models.load(Path("sparse"))).items()}
    for variant in SPARSE:
        run(variant, model_folder, student=Path("sparse"))
        taught = models.load(Path("out/model"))
        kept = [torch.equal(layer.weight == 0, zeros[name]) for name, layer in calibrate.linears(taught).items()]
        assert all(kept) if variant == "recovered" else not any(kept)
        print(
            variant, before, losses.compare(models.logits(models.load(model_folder)), models.logits(taught), rows)["kl"]
        )


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["live", "written"])
def test_where_they_are_it_is_refused_before_anything_is_loaded(project, stranger, variant, monkeypatch):
    monkeypatch.setattr(models, "load", lambda _: pytest.fail("too late"))
    with pytest.raises(UserError, match="the vocabularies differ: .*stranger, the teacher, has tokenizer"):
        run(variant, stranger)
