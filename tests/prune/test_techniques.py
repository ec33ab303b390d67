"""What every pruning technique must hold, whatever its method. A new file in stages/prune/ is picked up here."""

import copy
from importlib import import_module

import pytest
import torch

from stages.lib import calibrate, params

TARGETS = {"half": {"sparsity": 0.5}, "most": {"sparsity": 0.8}, "2of4": {"pattern": "2of4"}}
PARENTS = {"model": "pretrain/base", "tokens": "tokenize/bpe"}


@pytest.fixture(params=params.techniques("prune"))
def technique(request):
    return import_module(f"stages.prune.{request.param}")


def make(technique, **target):
    return technique.Params(method=technique.__name__.rsplit(".", 1)[1], **PARENTS, **target)


def test_names_its_source(technique):
    assert "arXiv:" in technique.__doc__ or "doi:" in technique.__doc__


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


def test_same_inputs_give_the_same_bits(technique, tiny, rows):
    a = technique.prune(copy.deepcopy(tiny), rows, make(technique, sparsity=0.5))
    b = technique.prune(copy.deepcopy(tiny), rows, make(technique, sparsity=0.5))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_what_stays_is_unchanged_and_the_rest_is_untouched(technique, tiny, rows):
    dense = copy.deepcopy(tiny.state_dict())
    pruned = technique.prune(tiny, rows, make(technique, sparsity=0.5))
    prunable = {f"{name}.weight" for name in calibrate.linears(pruned)}
    for name, weight in pruned.state_dict().items():
        kept = weight != 0 if name in prunable else torch.ones_like(weight, dtype=torch.bool)
        assert torch.equal(weight[kept], dense[name][kept]), name
    assert pruned.lm_head.weight is pruned.model.embed_tokens.weight


def test_a_width_without_whole_groups_is_refused_before_anything_changes(technique, tiny, rows):
    tiny.model.layers[1].mlp.down_proj = torch.nn.Linear(126, 64, bias=False)
    dense = copy.deepcopy(tiny.state_dict())
    with pytest.raises(SystemExit, match=r"down_proj has 126 inputs; pattern 2of4 needs a multiple of 4"):
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
    with pytest.raises(SystemExit) as error:
        params.technique("prune", "mine", entry)
    assert str(error.value) == f"params.yaml: prune.mine.{complaint}"
