"""What every pruning technique must hold, whatever its method. A new file in stages/prune/ is picked up here."""

import copy
from importlib import import_module

import pytest
import torch

from stages.export import gguf, onnx
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy, losses
from stages.lib.runtimes import base
from stages.lib.store import models, tokens
from stages.prune import Pruning, Sparse

TRAINING = {"steps": 2, "batch_size": 2}
NEEDS = {  # what a technique wants to know beyond its parents
    "depth": {"layers": 1},
    "lottery": {"sparsity": 0.5, "rounds": 2, "training": TRAINING},
    "spectral_width": {"multiple": 4},
    "vocabulary": {"size": 400},
    "width": {"hidden": 48, "ffn": 96, "heads": 2, "kv_heads": 1},
    "spectral": {},
}
MOVES = ("sparsegpt",)  # what stays, to make up for what went
TARGETS = {"half": {"sparsity": 0.5}, "most": {"sparsity": 0.8}, "2of4": {"pattern": "2of4"}}
PARENTS = {"model": "pretrain/base", "tokens": "tokenize/bpe"}


EVERY = params.techniques("prune")
SPARSE = [name for name in EVERY if issubclass(params.technique_class("prune", name), Sparse)]


def read_by(smaller, whole, rows):
    """The rows in the tokens of a model, whose vocabulary may be smaller."""
    found = tokens.pieces(whole.backend_tokenizer, smaller.backend_tokenizer)
    return tokens.batch(tokens.Translated(rows.numpy(), found), range(len(rows)))


@pytest.fixture(params=EVERY)
def any_technique(request):
    return request.param


@pytest.fixture(params=SPARSE)
def technique(request):
    return request.param


def make(name, **target):
    entry = {"method": name, **PARENTS, **NEEDS.get(name, target)}
    found = params.technique("prune", "mine", entry)
    assert isinstance(found, Pruning)
    return found


def test_names_its_source(any_technique):
    about = import_module(f"stages.prune.{any_technique}").__doc__ or ""
    assert "arXiv:" in about or "doi:" in about


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_reaches_the_asked_sparsity(technique, tiny, rows, given, target):
    model = make(technique, **target).prune(tiny, given(rows))
    for name, layer in anatomy.matrices(model).items():
        zeros = (layer.weight == 0).float().mean().item()
        assert zeros == pytest.approx(target.get("sparsity", 0.5), abs=0.01), name


def test_a_pattern_holds_in_every_group(technique, tiny, rows, given):
    model = make(technique, pattern="2of4").prune(tiny, given(rows))
    for name, layer in anatomy.matrices(model).items():
        assert ((layer.weight != 0).unflatten(1, (-1, 4)).sum(2) == 2).all(), name


def test_same_inputs_give_the_same_bits(any_technique, tiny, rows, given):
    a, b = (make(any_technique, sparsity=0.5).prune(copy.deepcopy(tiny), given(rows, name)) for name in ("a", "b"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_pruned_model_is_saved_loaded_and_writes(any_technique, tiny, tokenizer, rows, given, tmp_path):
    own = given(rows)
    pruned = make(any_technique, sparsity=0.5).prune(tiny, own)
    models.save(pruned, own.tokenizer, tmp_path / "model")
    loaded, rows = models.load(tmp_path / "model"), read_by(own.tokenizer, tokenizer, rows)
    assert torch.equal(loaded(rows[:2]).logits, pruned(rows[:2]).logits)
    assert loaded.generate(rows[:2], max_new_tokens=3).shape == (2, rows.shape[1] + 3)


@pytest.mark.slow
def test_a_pruned_model_runs_where_it_ships(any_technique, tiny, tokenizer, rows, given, tmp_path):
    own = given(rows)
    pruned, rows = make(any_technique, sparsity=0.5).prune(tiny, own), read_by(own.tokenizer, tokenizer, rows)
    exporters = gguf.GGUF(method="gguf", type="F16", **PARENTS), onnx.ONNX(method="onnx", type="float32", **PARENTS)
    for exporter in exporters:
        folder, method = tmp_path / exporter.method, exporter.method
        folder.mkdir()
        exporter.write(copy.deepcopy(pruned), own.tokenizer, folder, torch.empty(0, 0))
        export = exporter.open(folder)
        seen = losses.compare(models.logits(pruned), base.logits(export), rows[:4])
        assert abs(seen["kl"]) < 1e-4, method
        assert export.size()[0] == pruned.num_parameters(), method


def test_what_stays_is_unchanged_and_the_rest_is_untouched(technique, tiny, rows, given):
    dense = copy.deepcopy(tiny.state_dict())
    pruned = make(technique, sparsity=0.5).prune(tiny, given(rows))
    prunable = {f"{name}.weight" for name in anatomy.matrices(pruned)}
    for name, weight in pruned.state_dict().items():
        kept = weight != 0 if name in prunable else torch.ones_like(weight, dtype=torch.bool)
        moves = name in prunable and technique in MOVES
        assert torch.equal(weight[kept], dense[name][kept]) != moves, name
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight


def test_a_width_without_whole_groups_is_refused_before_anything_changes(technique, tiny, rows, given):
    tiny.model.layers[1].mlp.down_proj = torch.nn.Linear(126, 64, bias=False)
    dense = copy.deepcopy(tiny.state_dict())
    with pytest.raises(UserError, match=r"down_proj has 126 inputs; pattern 2of4 needs a multiple of 4"):
        make(technique, pattern="2of4").prune(tiny, given(rows))
    assert all(torch.equal(weight, dense[name]) for name, weight in tiny.state_dict().items())


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ({}, "pattern is None: give exactly one of sparsity and pattern"),
        ({"sparsity": 0.5, "pattern": "2of4"}, "pattern is '2of4': give exactly one of sparsity and pattern"),
        ({"pattern": 124}, "pattern is 124: input should be '2of4' or '4of8'"),  # what YAML makes of 2:4
        ({"sparsity": 1.5}, "sparsity is 1.5: input should be less than 1"),
    ],
)
def test_a_wrong_target_is_named(technique, target, complaint):
    entry = {"method": technique, **PARENTS, **target}
    with pytest.raises(UserError) as error:
        params.technique("prune", "mine", entry)
    assert str(error.value) == f"params.yaml: prune.mine.{complaint}"
