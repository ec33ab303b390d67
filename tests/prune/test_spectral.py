"""Spectral: a planted signal comes out of noise, pure noise goes whole, and a budget is kept."""

import copy

import pytest
import torch
from torch import nn

from stages.lib.nets import calibrate
from stages.prune import spectral

P = {"method": "spectral", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def prune(model, given, **more):
    return spectral.Spectral(**P, **more).prune(model, given)


def ranks(model, given, **more):
    return spectral.Spectral(**P).ranks(prune(model, given, **more))


def planted(outputs, inputs, rank, strength, seed=0):
    """(signal, signal + noise of variance 1): all singular values of the signal are `strength` noise edges."""
    random = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(outputs, rank, generator=random))[0]
    right = torch.linalg.qr(torch.randn(inputs, rank, generator=random))[0]
    signal_OI = strength * (outputs**0.5 + inputs**0.5) * left @ right.T
    return signal_OI, signal_OI + torch.randn(outputs, inputs, generator=random)


def layers(*weights):
    """A model of these matrices; what it computes is of no interest here."""
    model = nn.Module()
    for number, weight in enumerate(weights):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        model.add_module(f"layer{number}", layer)
    return model


@pytest.mark.parametrize(("outputs", "inputs", "rank"), [(128, 128, 6), (256, 96, 4), (96, 256, 4), (200, 150, 12)])
def test_the_planted_rank_is_found_and_most_noise_goes(none, outputs, inputs, rank):
    signal_OI, seen_OI = planted(outputs, inputs, rank, strength=3)
    model = prune(layers(seen_OI), none)
    assert spectral.Spectral(**P).ranks(model) == {"layer0": rank}
    before, after = ((each - signal_OI).square().mean() for each in (seen_OI, model.layer0.weight))
    assert after < 0.2 * before  # what is left of the noise lies in the signal's own directions


def test_noise_alone_has_no_more_than_its_largest_direction(none):
    """Its largest singular value ends around the edge (Tracy & Widom 1994), not at it."""
    noise = [torch.randn(96, 160, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    assert max(ranks(layers(*noise), none).values()) <= 1


def test_each_layer_gets_its_own_rank(none):
    planted_ranks = (2, 9, 20)
    model = layers(*(planted(128, 96, rank, 3, seed)[1] for seed, rank in enumerate(planted_ranks)))
    assert tuple(ranks(model, none).values()) == planted_ranks


def test_the_scale_of_a_layer_does_not_matter(none):
    seen_OI = planted(96, 128, 5, 2)[1]
    one, other = (prune(layers(scale * seen_OI), none) for scale in (1.0, 1e-3))
    torch.testing.assert_close(1e-3 * one.layer0.weight, other.layer0.weight, atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_budget_is_filled_with_the_strongest_directions(tiny, none, share):
    dense = copy.deepcopy(tiny)
    found = ranks(tiny, none, parameters=share)
    sizes = {name: layer.weight.shape for name, layer in calibrate.linears(tiny).items()}
    held = sum(rank * sum(sizes[name]) for name, rank in found.items())
    total = sum(layer.weight.numel() for layer in calibrate.linears(tiny).values())
    assert share * total - max(map(sum, sizes.values())) < held <= share * total
    weakest, strongest = 1e9, 0.0
    for name, layer in calibrate.linears(dense).items():
        values_K = torch.linalg.svdvals(layer.weight.detach().double())
        values_K /= spectral.edge(layer.weight, values_K)
        weakest = min([weakest, *values_K[: found[name]].tolist()])
        strongest = max([strongest, *values_K[found[name] :].tolist()])
    assert strongest <= weakest


def test_what_stays_is_the_best_of_its_rank(none):
    """Eckart & Young 1936: no matrix of this rank is nearer; its distance is what the cut values hold."""
    seen_OI = planted(96, 128, 5, 2)[1]
    model = prune(layers(seen_OI), none)
    rest = torch.linalg.svdvals(seen_OI)[spectral.Spectral(**P).ranks(model)["layer0"] :].norm()
    assert (seen_OI - model.layer0.weight).norm().item() == pytest.approx(rest.item(), rel=1e-4)
