"""SparseGPT against its recursion written out with inverses, against least squares, and against llmcompressor."""

import copy

import pytest
import torch

from stages.lib.nets import calibrate
from stages.prune import magnitude, sparsegpt, wanda
from stages.quantize.parts import compressed

P = {"method": "sparsegpt", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def correlated(tokens, inputs, outputs):
    """Inputs that say much about each other, and a layer that reads them."""
    random = torch.Generator().manual_seed(0)
    mix_II = torch.randn(inputs, inputs, generator=random) / inputs**0.5 + torch.eye(inputs)
    return torch.randn(tokens, inputs, generator=random) @ mix_II, torch.randn(outputs, inputs, generator=random)


@pytest.mark.parametrize("target", [{"sparsity": 0.5}, {"pattern": "2of4"}], ids=str)
def test_every_step_is_the_optimal_brain_surgeons(target):
    """Without factors: at each input the inverse of what is left of the Hessian, weight by weight."""
    x_MI, weight_OI = correlated(200, 16, 3)
    result_OI = sparsegpt.SparseGPT(**P, **target).sparsify(weight_OI, x_MI.T @ x_MI).double()
    hessian_II = (x_MI.T @ x_MI).double()
    hessian_II += 0.01 * hessian_II.diagonal().mean() * torch.eye(16)
    expected_OI, inverses = weight_OI.double(), [torch.linalg.inv(hessian_II[i:, i:]) for i in range(16)]
    for i in range(16):
        for o in range(3):
            if result_OI[o, i] == 0:  # the choice is checked below
                expected_OI[o, i:] -= expected_OI[o, i] / inverses[i][0, 0] * inverses[i][0]
    torch.testing.assert_close(result_OI, expected_OI, atol=1e-4, rtol=1e-3)


def test_scores_choose_the_cheapest():
    """Over the first 128 inputs, where nothing has moved yet: w^2 / [H^-1]_ii of the Hessian without those before i."""
    x_MI, weight_OI = correlated(200, 16, 3)
    hessian_II = (x_MI.T @ x_MI).double()
    hessian_II += 0.01 * hessian_II.diagonal().mean() * torch.eye(16)
    scores = [
        (weight_OI[o, i].item() ** 2 / torch.linalg.inv(hessian_II[i:, i:])[0, 0].item(), o, i)
        for o in range(3)
        for i in range(16)
    ]
    gone = {(o, i) for _, o, i in sorted(scores)[:12]}
    result_OI = sparsegpt.SparseGPT(**P, sparsity=0.25).sparsify(weight_OI, x_MI.T @ x_MI)
    assert gone == {tuple(place) for place in (result_OI == 0).nonzero().tolist()}


def test_what_stays_after_one_weight_went_is_the_least_squares_solution():
    """The first input's weight is the smallest by far, so it goes alone."""
    x_MI, weight_OI = correlated(400, 8, 1)
    weight_OI[0, 0] = 1e-3
    result_OI = sparsegpt.SparseGPT(**P, sparsity=0.125, damping=1e-9).sparsify(weight_OI, x_MI.T @ x_MI)
    solution_I1 = torch.linalg.lstsq(x_MI[:, 1:].double(), (x_MI @ weight_OI.T).double()).solution
    assert result_OI[0, 0] == 0
    torch.testing.assert_close(result_OI[0, 1:].double(), solution_I1[:, 0], atol=1e-4, rtol=1e-4)


def test_an_input_that_is_always_zero_needs_no_weight():
    x_MI, weight_OI = correlated(200, 16, 3)
    x_MI[:, 5] = 0
    result_OI = sparsegpt.SparseGPT(**P, sparsity=0.25).sparsify(weight_OI, x_MI.T @ x_MI)
    assert (result_OI[:, 5] == 0).all() and result_OI.isfinite().all()


@pytest.mark.parametrize("target", [{"sparsity": 0.5}, {"pattern": "2of4"}], ids=str)
def test_outputs_stray_less_than_by_the_other_methods(given, target):
    x_MI, weight_OI = correlated(1000, 256, 32)  # two groups of 128 inputs

    def strays(technique, name):
        layer = torch.nn.Linear(256, 32, bias=False)
        layer.weight.data = weight_OI.clone()
        technique(**P | {"method": name}, **target).prune(torch.nn.Sequential(layer), given(x_MI[None]))
        return (x_MI @ (layer.weight - weight_OI).T).square().mean().item()

    others = strays(wanda.Wanda, "wanda"), strays(magnitude.Magnitude, "magnitude")
    assert strays(sparsegpt.SparseGPT, "sparsegpt") < 0.8 * min(others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "structure", "strays"), [({"sparsity": 0.5}, "0:0", 0.05), ({"pattern": "2of4"}, "2:4", 1e-5)]
)
def test_agrees_with_llmcompressor(tiny, rows, given, target, structure, strays):
    """Without a pattern it drops one weight more in every 128 inputs; what moves to make up for it moves others."""
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier

    modifier = SparseGPTModifier(sparsity=0.5, mask_structure=structure, targets=["re:.*_proj$"])
    reference = compressed.oneshot(copy.deepcopy(tiny), [modifier], rows)
    sparsegpt.SparseGPT(**P, **target).prune(tiny, given(rows))
    for name, layer in calibrate.linears(tiny).items():
        ours, theirs = layer.weight, reference.get_submodule(name).weight
        assert ((ours == 0) != (theirs == 0)).float().mean() <= strays / 10, name
        assert (ours - theirs).norm() < strays * ours.norm(), name
