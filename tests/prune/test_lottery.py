"""Lottery by hand, with a training whose end is known, and with a real one."""

import copy

import pytest
import torch
from torch import nn

from stages.lib.nets import anatomy
from stages.prune import lottery
from stages.prune.parts.given import Given

TRAINING = {"steps": 3, "batch_size": 2, "lr": 0.01}
P = {"method": "lottery", "model": "pretrain/base", "tokens": "tokenize/bpe", "training": TRAINING}


def test_two_rounds_by_hand(none):
    """Training adds 1 2 3 4 in the first round, 9 0 0 1 in the second, where nothing is zero already.

    1 -5 1 1 -> 2 -3 4 5: the first goes (a quarter); the rest goes back: 0 -5 1 1 -> 0 -5 1 2: half is gone with the
    third; back: 0 -5 0 1; trained for the last time: 0 -5 0 2.
    """
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -5.0, 1.0, 1.0]])
    added = iter([torch.tensor([[1.0, 2.0, 3.0, 4.0]]), *[torch.tensor([[9.0, 0.0, 0.0, 1.0]])] * 2])
    trained = []

    class Adding(Given):
        def train(self, model, p):
            layer.weight.data += next(added) * (layer.weight != 0)
            trained.append(layer.weight.tolist())

    given = Adding(none.rows, none.training_rows, none.tokenizer, none.scores, none.trainings)
    lottery.Lottery(**P, sparsity=7 / 16, rounds=2).prune(nn.Sequential(layer), given)
    assert trained == [[[2, -3, 4, 5]], [[0, -5, 1, 2]], [[0, -5, 0, 2]]]
    assert layer.weight.tolist() == trained[-1]


@pytest.mark.parametrize("rounds", [1, 3])
def test_a_ticket_is_as_sparse_as_asked_in_every_layer(tiny, rows, given, rounds):
    first = copy.deepcopy(tiny)
    ticket = lottery.Lottery(**P, sparsity=0.7, rounds=rounds).prune(tiny, given(rows))
    for name, layer in anatomy.matrices(ticket).items():
        assert (layer.weight == 0).float().mean().item() == pytest.approx(0.7, abs=0.001), name
        assert not torch.equal(layer.weight, first.get_submodule(name).weight * (layer.weight != 0)), "trained at last"


def test_weights_go_back_to_where_they_began(tiny, none):
    """The first training moves every weight, the second none."""
    first, trained = copy.deepcopy(tiny.state_dict()), []

    class Moving(Given):
        def train(self, model, p):
            if not trained:
                for weight in model.parameters():
                    weight.data += torch.randn_like(weight)
            trained.append(copy.deepcopy(model.state_dict()))

    given = Moving(none.rows, none.training_rows, none.tokenizer, none.scores, none.trainings)
    lottery.Lottery(**P, sparsity=0.5, rounds=1).prune(tiny, given)
    layers = anatomy.matrices(tiny)
    for name, weight in tiny.state_dict().items():
        layer = name.removesuffix(".weight")
        stays = weight != 0 if layer in layers else torch.ones_like(weight, dtype=torch.bool)
        assert torch.equal(weight[stays], first[name][stays])
        if layer in layers:  # the large ones of the trained model stay
            size = trained[0][name].abs()
            assert size[stays].min() >= size[~stays].max()


def test_a_killed_lottery_goes_on_and_ends_in_the_same_ticket(llama, rows, given, tmp_path):
    class Killed(Given):
        def train(self, model, p):
            if self.trained == 2:
                raise KeyboardInterrupt
            super().train(model, p)

    def draw(name, kind=Given):
        own = given(rows, name)
        ticket = lottery.Lottery(**P, sparsity=0.7, rounds=2)
        return ticket.prune(llama(512), kind(own.rows, own.training_rows, own.tokenizer, own.scores, own.trainings))

    whole = draw("whole")
    with pytest.raises(KeyboardInterrupt):
        draw("cut", Killed)
    before = sorted(file.name for file in (tmp_path / "cut" / "trainings").iterdir())
    resumed = draw("cut")
    assert before == ["1-done", "2-done"]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
