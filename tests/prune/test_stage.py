"""The stage as DVC calls it: what it counts, what it keeps, and what it refuses before it works."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from apps.parts.llama import Llama
from stages.export import gguf
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy, losses
from stages.lib.runtimes.base import logits
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import dense, models, tokens
from stages.prune import __main__ as stage
from stages.prune import width

PARENTS = "model: prune/wanda-50, tokens: tokenize/bpe"
VARIANTS = {
    "magnitude-2of4": "method: magnitude, pattern: 2of4",
    "wanda-50": "method: wanda, sparsity: 0.5, calibration: {rows: 8, seed: 1}",
    "sparsegpt-2of4": "method: sparsegpt, pattern: 2of4, calibration: {rows: 8}",
    "spectral-50": "method: spectral, parameters: 0.5",
    "depth-1": "method: depth, layers: 1, calibration: {rows: 8}",
    "width-192": "method: width, hidden: 192, calibration: {rows: 8}",
    "width-128": "method: width, hidden: 128, ffn: 256, heads: 2, kv_heads: 1, calibration: {rows: 8}",
    "vocabulary": "method: vocabulary, size: 400",
    "ticket": "method: lottery, sparsity: 0.5, rounds: 2, training: {steps: 2, batch_size: 2}",
}


def test_zeros_are_counted_over_what_may_change_and_over_all(tiny):
    tiny.model.embed_tokens.weight.data += 1  # torch zeroes the row of the padding token
    for layer in anatomy.matrices(tiny).values():
        layer.weight[0] = 0
    seen = stage.zeros(tiny)
    rows = sum(layer.in_features for layer in anatomy.matrices(tiny).values())
    total = sum(layer.weight.numel() for layer in anatomy.matrices(tiny).values())
    assert seen["sparsity"] == pytest.approx(rows / total)
    assert seen["sparsity_model"] == pytest.approx(rows / tiny.num_parameters())  # the tied head once
    assert seen["nonzero_parameters"] == tiny.num_parameters() - rows


def test_a_file_that_reads_back_otherwise_is_refused(tiny, tokenizer, tmp_path):
    models.save(tiny, tokenizer, tmp_path / "model")
    assert stage.reload(tiny, tmp_path / "model").num_parameters() == tiny.num_parameters()
    tiny.model.norm.weight.data += 1
    with pytest.raises(UserError, match="does not hold what was saved: model.norm.weight"):
        stage.reload(tiny, tmp_path / "model")


@pytest.fixture
def project(tmp_path, monkeypatch, rows, model_folder):
    """A folder with params.yaml and token rows, as the stage finds them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    lines = [f"  {name}: {{{more}, {PARENTS}}}" for name, more in VARIANTS.items()]
    start = "tokenize:\n  bpe: {method: bpe, documents: tokenize/bpe, problems: tokenize/bpe}\nprune:"
    Path("params.yaml").write_text("\n".join([start, *lines]))
    numbers = rows.numpy().astype(np.uint16)
    about = {"vocab_size": 512, "context": 64, "tokenizer": files.digest(model_folder / "tokenizer.json")}
    tokens.save(Path("tokens"), about, model_folder / "tokenizer.json", train=numbers, held_out=numbers)
    Path("code.json").write_text("{}")


def run(variant, model, out="out"):
    folders = {"tokens": Path("tokens"), "code": Path("code.json"), "checkpoints": Path("checkpoints")}
    stage.main(variant, model=model, **folders, out=Path(out))
    return json.loads(Path(out, "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["magnitude-2of4", "wanda-50", "sparsegpt-2of4", "ticket"])
def test_prunes_and_measures_the_same_twice(project, model_folder, rows, variant):
    digests = []
    for name in ("once", "twice"):
        seen = run(variant, model_folder, name)
        digests.append((files.digest(Path(name, "model")), files.digest(Path(name, "metrics.json"))))
    assert digests[0] == digests[1]
    dense, pruned = models.load(model_folder), models.load(Path("once/model"))
    assert seen["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert seen["loss_before"] == pytest.approx(losses.evaluate(dense, rows))
    assert seen["loss_after"] == pytest.approx(losses.evaluate(pruned, rows))
    with torch.no_grad():
        p_NTV, q_NTV = (model(rows).logits.log_softmax(-1) for model in (dense, pruned))
    assert seen["kl"] == pytest.approx((p_NTV.exp() * (p_NTV - q_NTV)).sum(-1).mean().item(), rel=1e-4)
    assert seen["same_top"] == pytest.approx((p_NTV.argmax(-1) == q_NTV.argmax(-1)).float().mean().item(), abs=2e-3)
    assert torch.equal(pruned.lm_head.weight, dense.lm_head.weight) == (variant != "ticket")
    assert not list(Path("checkpoints").glob("*/*")), "a finished training needs no checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_of_16_bits_loses_what_its_copy_of_32_loses(project, model_folder, tokenizer, variant):
    """Also where scores and sums are of 16 bits, which may choose another channel of the same worth. A training, and
    what only 32 bits can hold, come back in 32."""
    half = models.load(model_folder).bfloat16()
    models.save(half, tokenizer, Path("half/model"))
    models.save(half.float(), tokenizer, Path("whole/model"))
    seen, expected = run(variant, Path("half/model"), "out/half"), run(variant, Path("whole/model"), "out/whole")
    kinds = {weight.dtype for weight in models.load(Path("out/half/model"), "stored").parameters()}
    assert kinds == {torch.float32 if variant in ("ticket", "spectral-50") else torch.bfloat16}
    for name in ("sparsity", "parameters", "nonzero_parameters"):
        assert seen[name] == pytest.approx(expected[name], rel=1e-3), name
    assert seen["loss_after"] == pytest.approx(expected["loss_after"], abs=0.02)
    assert seen["kl"] == pytest.approx(expected["kl"], rel=0.1, abs=1e-3)


@pytest.mark.slow
def test_another_shape_needs_no_new_forward_pass(project, model_folder, monkeypatch):
    before = run("width-192", model_folder, "first")
    monkeypatch.setattr(width.Width, "score", lambda *_: pytest.fail("a second forward pass"))
    again, other = (run(name, model_folder, name) for name in ("width-192", "width-128"))
    assert again == before and other["parameters"] < before["parameters"]
    assert files.digest(Path("first/model")) == files.digest(Path("width-192/model"))
    assert models.load(Path("width-128/model")).config.intermediate_size == 256


@pytest.mark.slow
def test_other_rows_need_other_scores(project, model_folder):
    run("width-192", model_folder)
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("hidden: 192, calibration: {rows: 8}", "hidden: 192"))
    run("width-192", model_folder)
    assert len(list(Path("checkpoints").iterdir())) == 2


@pytest.mark.slow
def test_the_rank_of_every_layer_is_told(project, model_folder):
    found = run("spectral-50", model_folder)["rank"]
    layers = anatomy.matrices(models.load(Path("out/model")))
    assert found.keys() == layers.keys()
    for name, layer in layers.items():
        values_K = torch.linalg.svdvals(layer.weight.double())
        assert found[name] == int((values_K > 1e-5 * values_K[0]).sum()), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant", ["depth-1", "width-128", "spectral-50", "magnitude-2of4", "sparsegpt-2of4", "vocabulary"]
)
def test_what_comes_out_runs_in_llama_cpp(project, model_folder, rows, variant):
    """The fork that logits are read with, at every position, and the llama.cpp that users run, at one."""
    run(variant, model_folder)
    write("F16", "export")
    source, export = models.load(Path("out/model")), open_runtime(Path("export"))
    rows = tokens.held_out(Path("tokens"), 4, Path("out/model"))
    seen = losses.compare(models.logits(source), logits(export), rows)
    assert abs(seen["kl"]) < 1e-4 and export.size()[0] == source.num_parameters()
    ours_TV = source(rows[:1]).logits[0].log_softmax(-1)
    chosen = export.tokenizer.batch_decode(ours_TV.argmax(-1)[:, None])
    last = next(t for t in range(20, 64) if "\ufffd" not in chosen[t])  # of half a character the server tells nothing
    request = {"prompt": rows[0, : last + 1].tolist(), "max_tokens": 1, "temperature": 0, "logprobs": 1}
    said = Llama(Path("export/model.gguf")).server.handle_completions(request)
    first = said["choices"][0]["logprobs"]["content"][0]
    assert first["id"] == int(ours_TV[last].argmax())
    assert first["logprob"] == pytest.approx(ours_TV[last].max().item(), abs=0.01)


def write(type, folder):
    """The pruned model as GGUF."""
    technique = gguf.GGUF(method="gguf", type=type, model="prune/wanda-50", tokens="tokenize/bpe")
    Path(folder).mkdir()
    tokenizer = models.load_tokenizer(Path("out/model"))
    technique.write(dense.load(Path("out/model")), tokenizer, Path(folder), torch.empty(0, 0))


@pytest.mark.slow
def test_a_width_that_a_format_cannot_hold_is_refused(project, model_folder):
    run("width-192", model_folder)
    with pytest.raises(UserError, match="rows of 192 weights; Q4_K_M needs multiples of 256: choose fallback, or F16"):
        write("Q4_K_M", "export")
    assert not list(Path("export").iterdir())
    write("Q8_0", "other")
    assert open_runtime(Path("other")).size()[0] == models.load(Path("out/model")).num_parameters()


@pytest.mark.slow
def test_fewer_tokens_and_then_fewer_weights_from_the_same_rows(project, model_folder, rows):
    """Rows are numbered by the whole vocabulary; each model reads them in its own."""
    seen = run("vocabulary", model_folder)
    whole, small = models.load(model_folder), models.load(Path("out/model"))
    old, new = (models.load_tokenizer(place).get_vocab() for place in (model_folder, Path("out/model")))
    assert seen["parameters"] == whole.num_parameters() - 112 * 256 == small.num_parameters()
    assert (seen["vocab_size_before"], seen["vocab_size"]) == (512, 400) == (len(old), len(new))
    names = {number: token for token, number in old.items()}
    gone = [names[number] not in new for number in rows.flatten().tolist()]
    assert seen["dropped"] == pytest.approx(sum(gone) / len(gone)) and 0 < seen["dropped"] < 0.1
    assert abs(seen["kl"]) < 1e-6 and seen["same_top"] == 1 and seen["loss_before"] == pytest.approx(seen["loss_after"])

    own = tokens.held_out(Path("tokens"), 16, Path("out/model"))
    assert seen["loss_after"] == pytest.approx(losses.evaluate(small, own))
    kept = torch.tensor([old[token] for token, _ in sorted(new.items(), key=lambda pair: pair[1])])
    with torch.no_grad():
        p_NTV, q_NTV = whole(kept[own]).logits[..., kept].log_softmax(-1), small(own).logits.log_softmax(-1)
    torch.testing.assert_close(p_NTV, q_NTV, atol=1e-5, rtol=1e-5)

    after = run("wanda-50", Path("out/model"), "both")
    assert after["loss_before"] == pytest.approx(seen["loss_after"]) and after["sparsity"] == pytest.approx(
        0.5, abs=1e-4
    )
    assert files.digest(Path("both/model/tokenizer.json")) == files.digest(Path("out/model/tokenizer.json"))
    again = run("vocabulary", model_folder, "again")
    assert again == seen and files.digest(Path("again/model")) == files.digest(Path("out/model"))


@pytest.mark.slow
def test_another_vocabulary_is_refused_and_nothing_is_written(project, model_folder):
    files.write_json(Path("tokens/tokens.json"), {"tokenizer": "0" * 64})
    Path("tokens/tokenizer.json").unlink()
    with pytest.raises(UserError, match="the vocabularies differ: tokens has tokenizer 000000000000"):
        run("wanda-50", model_folder)
    assert not Path("out").exists() or not list(Path("out").iterdir())
