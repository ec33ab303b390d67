"""What every pruning technique must hold, whatever its method. A new file in stages/prune/ is picked up here."""

import copy
from importlib import import_module

import pytest
import torch

from stages.export import gguf, onnx
from stages.export.__main__ import each
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate, losses
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models, tokens
from stages.prune import Sparse

TRAINING = {"steps": 2, "batch_size": 2}
NEEDS = {  # what a technique wants to know beyond its parents
    "depth": {"layers": 1},
    "lottery": {"sparsity": 0.5, "rounds": 2, "training": TRAINING},
    "spectral_width": {"multiple": 4},
    "width": {"hidden": 48, "ffn": 96, "heads": 2, "kv_heads": 1},
    "spectral": {},
}
MOVES = ("sparsegpt",)  # what stays, to make up for what went
TARGETS = {"half": {"sparsity": 0.5}, "most": {"sparsity": 0.8}, "2of4": {"pattern": "2of4"}}
PARENTS = {"model": "pretrain/base", "tokens": "tokenize/bpe"}


def load(name):
    return import_module(f"stages.prune.{name}")


EVERY = params.techniques("prune")
SPARSE = [name for name in EVERY if issubclass(load(name).Params, Sparse)]


@pytest.fixture(params=EVERY)
def any_technique(request):
    return load(request.param)


@pytest.fixture(params=SPARSE)
def technique(request):
    return load(request.param)


def make(technique, **target):
    name = technique.__name__.rsplit(".", 1)[1]
    return technique.Params(method=name, **PARENTS, **NEEDS.get(name, target))


@pytest.fixture
def prune(rows, tmp_path):
    """prune(technique, model, params): with what the stage would give it, rows or what is made of them."""
    tokens.save(tmp_path / "tokens", {}, train=rows.numpy().astype("uint16"))

    def run(technique, model, p):
        files.remove(tmp_path / "kept")
        given = rows
        if hasattr(technique, "score"):
            given = given.scores(technique, model, rows, p, tmp_path / "kept")
        elif hasattr(p, "training"):
            given = given.trainer(tmp_path / "tokens", p.training, tmp_path / "kept")
        return technique.prune(model, given, p)

    return run


def test_names_its_source(any_technique):
    assert "arXiv:" in any_technique.__doc__ or "doi:" in any_technique.__doc__


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_reaches_the_asked_sparsity(technique, tiny, rows, target):
    model = technique.prune(tiny, rows, make(technique, **target))
    for name, layer in calibrate.linears(model).items():
        zeros = (layer.weight == 0).float().mean().item()
        assert zeros == pytest.approx(target.get("sparsity", 0.5), abs=0.01), name


def test_a_pattern_holds_in_every_group(technique, tiny, rows):
    model = technique.prune(tiny, rows, make(technique, pattern="2of4"))
    for name, layer in calibrate.linears(model).items():
        assert ((layer.weight != 0).unflatten(1, (-1, 4)).sum(2) == 2).all(), name


def test_same_inputs_give_the_same_bits(any_technique, tiny, prune):
    a, b = (prune(any_technique, copy.deepcopy(tiny), make(any_technique, sparsity=0.5)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_pruned_model_is_saved_loaded_and_writes(any_technique, tiny, tokenizer, rows, prune, tmp_path):
    pruned = prune(any_technique, tiny, make(any_technique, sparsity=0.5))
    models.save(pruned, tokenizer, tmp_path / "model")
    loaded = models.load(tmp_path / "model")
    assert torch.equal(loaded(rows[:2]).logits, pruned(rows[:2]).logits)
    assert loaded.generate(rows[:2], max_new_tokens=3).shape == (2, rows.shape[1] + 3)


@pytest.mark.slow
def test_a_pruned_model_runs_where_it_ships(any_technique, tiny, tokenizer, rows, prune, tmp_path):
    pruned = prune(any_technique, tiny, make(any_technique, sparsity=0.5))
    for exporter, type in ((gguf, "F16"), (onnx, "float32")):
        folder, method = tmp_path / type, exporter.__name__.rsplit(".", 1)[1]
        folder.mkdir()
        p = exporter.Params(method=method, type=type, **PARENTS)
        exporter.write(copy.deepcopy(pruned), tokenizer, folder, p)
        export = open_runtime(folder)
        seen = losses.compare(models.logits(pruned), each(export), rows[:4], batch=1)
        assert abs(seen["kl"]) < 1e-4, method
        assert export.size()[0] == pruned.num_parameters(), method


def test_what_stays_is_unchanged_and_the_rest_is_untouched(technique, tiny, rows):
    dense = copy.deepcopy(tiny.state_dict())
    pruned = technique.prune(tiny, rows, make(technique, sparsity=0.5))
    prunable = {f"{name}.weight" for name in calibrate.linears(pruned)}
    for name, weight in pruned.state_dict().items():
        kept = weight != 0 if name in prunable else torch.ones_like(weight, dtype=torch.bool)
        moves = name in prunable and technique.__name__.endswith(MOVES)
        assert torch.equal(weight[kept], dense[name][kept]) != moves, name
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight


def test_a_width_without_whole_groups_is_refused_before_anything_changes(technique, tiny, rows):
    tiny.model.layers[1].mlp.down_proj = torch.nn.Linear(126, 64, bias=False)
    dense = copy.deepcopy(tiny.state_dict())
    with pytest.raises(UserError, match=r"down_proj has 126 inputs; pattern 2of4 needs a multiple of 4"):
        technique.prune(tiny, rows, make(technique, pattern="2of4"))
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
    entry = {"method": technique.__name__.rsplit(".", 1)[1], **PARENTS, **target}
    with pytest.raises(UserError) as error:
        params.technique("prune", "mine", entry)
    assert str(error.value) == f"params.yaml: prune.mine.{complaint}"
