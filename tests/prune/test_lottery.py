"""Lottery by hand, with a training whose end is known, and with a real one."""

import copy

import pytest
import torch
from torch import nn

from stages.lib.nets import calibrate
from stages.lib.store import tokens
from stages.prune import lottery
from stages.prune.parts import given

TRAINING = {"steps": 3, "batch_size": 2, "lr": 0.01}
P = {"method": "lottery", "model": "pretrain/base", "tokens": "tokenize/bpe", "training": TRAINING}


def test_two_rounds_by_hand():
    """Training adds 1 2 3 4 in the first round, 9 0 0 1 in the second, where nothing is zero already.

    1 -5 1 1 -> 2 -3 4 5: the first goes (a quarter); the rest goes back: 0 -5 1 1 -> 0 -5 1 2: half is gone with the
    third; back: 0 -5 0 1; trained for the last time: 0 -5 0 2.
    """
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -5.0, 1.0, 1.0]])
    added = iter([torch.tensor([[1.0, 2.0, 3.0, 4.0]]), *[torch.tensor([[9.0, 0.0, 0.0, 1.0]])] * 2])
    seen = []

    def train(model):
        layer.weight.data += next(added) * (layer.weight != 0)
        seen.append(layer.weight.tolist())

    lottery.prune(nn.Sequential(layer), train, lottery.Params(**P, sparsity=7 / 16, rounds=2))
    assert seen == [[[2, -3, 4, 5]], [[0, -5, 1, 2]], [[0, -5, 0, 2]]]
    assert layer.weight.tolist() == seen[-1]


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_ticket_is_as_sparse_as_asked_in_every_layer(tiny, rows, tmp_path, rounds):
    tokens.save(tmp_path / "tokens", {}, train=rows.numpy())
    first = copy.deepcopy(tiny)
    p = lottery.Params(**P, sparsity=0.7, rounds=rounds)
    ticket = lottery.prune(tiny, given.trainer(tmp_path / "tokens", p.training, tmp_path / "kept"), p)
    for name, layer in calibrate.linears(ticket).items():
        assert (layer.weight == 0).float().mean().item() == pytest.approx(0.7, abs=0.001), name
        assert not torch.equal(layer.weight, first.get_submodule(name).weight * (layer.weight != 0)), "trained at last"


def test_weights_go_back_to_where_they_began(tiny):
    first = copy.deepcopy(tiny.state_dict())
    for weight in tiny.parameters():
        weight.data += torch.randn_like(weight)
    trained = copy.deepcopy(tiny)
    lottery.rewind(tiny, first, 0.5)
    layers = calibrate.linears(tiny)
    for name, weight in tiny.state_dict().items():
        layer = name.removesuffix(".weight")
        stays = weight != 0 if layer in layers else torch.ones_like(weight, dtype=torch.bool)
        assert torch.equal(weight[stays], first[name][stays])
        if layer in layers:  # the large ones of the trained model stay
            size = trained.state_dict()[name].abs()
            assert size[stays].min() >= size[~stays].max()


def test_a_killed_lottery_goes_on_and_ends_in_the_same_ticket(llama, rows, tmp_path):
    tokens.save(tmp_path / "tokens", {}, train=rows.numpy())
    p = lottery.Params(**P, sparsity=0.7, rounds=2)

    def draw(kept, stop_after=99):
        train, count = given.trainer(tmp_path / "tokens", p.training, tmp_path / kept), 0

        def counted(model):
            nonlocal count
            if count == stop_after:
                raise KeyboardInterrupt
            count += 1
            train(model)

        return lottery.prune(llama(512), counted, p)

    whole = draw("whole")
    with pytest.raises(KeyboardInterrupt):
        draw("cut", stop_after=2)
    before = sorted(file.name for file in (tmp_path / "cut").iterdir())
    resumed = draw("cut")
    assert before == ["1.safetensors", "2.safetensors"]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
