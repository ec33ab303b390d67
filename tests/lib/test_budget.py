"""A budget's choice against all choices; the model after the measurement against the one before."""

import itertools

import pytest
import torch

from stages.lib.nets import budget


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_within_the_budget_loses_less(seed):
    draw = torch.Generator().manual_seed(seed)
    costs = torch.randint(1, 60, (5, 3), generator=draw).sort().values.tolist()
    losses = torch.rand(5, 3, generator=draw).sort(descending=True).values.tolist()
    room = sum(map(min, costs)) + 60
    every = [
        (sum(loss[w] for loss, w in zip(losses, chosen, strict=True)), chosen)
        for chosen in itertools.product(range(3), repeat=5)
        if sum(cost[w] for cost, w in zip(costs, chosen, strict=True)) <= room
    ]
    assert tuple(budget.choose(costs, losses, room)) == min(every)[1]


@torch.no_grad()
def test_measures_each_form_alone_and_leaves_the_model_as_it_was(tiny, rows):
    before = {name: weight.clone() for name, weight in tiny.state_dict().items()}
    weights = {name: weight for name, weight in tiny.named_parameters() if "down_proj" in name}
    seen = budget.sensitivities(tiny, rows[:2], weights, lambda _, weight: (weight * 0, weight, weight * 0.5))
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.state_dict().items())
    assert len(seen) == len(weights)
    assert all(gone > half > same == 0 for gone, same, half in seen)

    said = tiny(rows[:2]).logits.log_softmax(-1)
    next(iter(weights.values())).mul_(0.5)
    kl = (said.exp() * (said - tiny(rows[:2]).logits.log_softmax(-1))).sum(-1).mean()
    assert seen[0][2] == pytest.approx(kl.item(), rel=1e-4)
