"""The loop: exact resume, accumulation, schedules against PyTorch's and by hand."""

import copy
import multiprocessing
import os
import signal
import time
from functools import partial

import pytest
import torch
from torch import nn

from stages.distill.solutions import Solutions
from stages.lib.frame import tracking
from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate, losses
from stages.lib.training import checkpoint, loop, optimizers, schedule
from stages.lib.training.config import Training
from stages.lib.training.muon import Muon, orthogonal

VOCABULARY = 64
PARENTS = {"model": "prune/a", "teacher": "align/a", "traces": "traces/a", "tokens": "tokenize/a"}


@pytest.fixture
def model(llama):
    return llama(VOCABULARY)


def batch(index: int, size: int = 4):
    return torch.randint(VOCABULARY, (size, 16), generator=torch.Generator().manual_seed(index))


def loss(model, ids):
    return losses.next_token(model(input_ids=ids).logits, ids)


def run(model, folder, stop_after=None, **more):
    p = Training(**{"steps": 12, "batch_size": 4, "precision": "float32", "checkpoint_seconds": 3600} | more)
    curve: list[dict[str, float]] = []

    def stopping(index):
        if index == stop_after:
            raise KeyboardInterrupt
        return batch(index)

    loop.fit(model, stopping, partial(loss, model), p, curve, folder)
    return model, curve


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_interrupted_and_resumed_ends_in_the_same_weights_and_curve(llama, tmp_path, monkeypatch):
    whole, curve = run(llama(VOCABULARY), tmp_path / "whole")
    monkeypatch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)  # a checkpoint every second step
    with pytest.raises(KeyboardInterrupt):
        run(llama(VOCABULARY), tmp_path / "cut", stop_after=7)
    assert (tmp_path / "cut" / "state.safetensors").exists()
    resumed, curve_resumed = run(llama(VOCABULARY), tmp_path / "cut")
    assert same(whole, resumed) and curve == curve_resumed and len(curve) == 12
    assert list(map(list, curve)) == list(map(list, curve_resumed)), "curve.csv has its columns in this order"
    assert not (tmp_path / "cut").exists(), "a finished run needs no checkpoint"


def flip(file):
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "emptied": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
}


@pytest.mark.parametrize("file", ["state.safetensors", "curve.json", "sha256"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_begun_anew(llama, tmp_path, monkeypatch, capsys, file, damage):
    whole, curve = run(llama(VOCABULARY), tmp_path / "whole", steps=3)
    monkeypatch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)
    with pytest.raises(KeyboardInterrupt):
        run(llama(VOCABULARY), tmp_path / "cut", stop_after=2, steps=3, checkpoint_seconds=1)
    DAMAGES[damage](tmp_path / "cut" / file)
    resumed, curve_resumed = run(llama(VOCABULARY), tmp_path / "cut", steps=3)
    assert same(whole, resumed) and curve == curve_resumed
    assert "is damaged" in capsys.readouterr().out


def endless(model, folder):
    torch.set_num_threads(1)
    run(model, folder, steps=100_000, checkpoint_seconds=1)


@pytest.mark.slow
def test_kill_9_leaves_a_whole_checkpoint(model, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=endless, args=(model, tmp_path / "c"))
    process.start()
    while not (tmp_path / "c" / "curve.json").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    curve: list[dict[str, float]] = []
    steppers = optimizers.optimizers(model, Training(steps=1))
    assert checkpoint.restore(tmp_path / "c", model, steppers, curve, {}) == curve[-1]["step"] > 0


def test_accumulation_is_one_large_batch(model):
    other = copy.deepcopy(model)
    parts = [batch(0, 2), batch(1, 2)]
    for net, p, feed in [
        (model, Training(steps=1, accumulation=2, precision="float32"), parts.__getitem__),
        (other, Training(steps=1, precision="float32"), lambda _index: torch.cat(parts)),
    ]:
        loop.update(net, optimizers.optimizers(net, p), feed, partial(loss, net), p, 0)
    for x, y in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(x, y, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_size": 4, "devices": 3}, "batch_size 4 can't be worked off in 3 equal parts"),
        ({"batch_size": 6, "devices": 2, "accumulation": 2}, r"in 4 equal parts \(accumulation 2, devices 2\)"),
        ({"parallel": "fsdp"}, "only with `devices` above 1"),
        ({"devices": 2, "parallel": "fsdp", "fake_quantize": {"weights": "ternary"}}, "take `parallel: ddp`"),
    ],
    ids=str,
)
def test_what_devices_cannot_share_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Training.model_validate({"steps": 1, **given})


def test_a_checkpoint_is_looked_for_in_one_place_whatever_the_devices(tmp_path):
    def place(**training):
        p = Solutions.model_validate({"method": "solutions", **PARENTS, "training": {"steps": 1, **training}})
        return tracking.Run().place(tmp_path, p)

    assert place() == place(devices=2) == place(devices=4, parallel="fsdp") != place(accumulation=2)


def test_schedules_by_hand():
    cosine = Training(steps=100, warmup=0.1, lr_floor=0.1)
    assert [schedule.rate(step, cosine) for step in (0, 9, 10)] == [0.1, 1.0, 1.0]
    assert schedule.rate(55, cosine) == pytest.approx(0.1 + 0.9 / 2)  # half-way down
    wsd = Training(steps=100, warmup=0.1, schedule="wsd", decay=0.2, lr_floor=0)
    assert schedule.rate(79, wsd) == 1.0 and schedule.rate(90, wsd) == pytest.approx(0.5)


def test_cosine_is_pytorchs():
    p = Training(steps=20, warmup=0, lr_floor=0, lr=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert schedule.rate(step, p) * p.lr == pytest.approx(reference.get_last_lr()[0])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_zeros_are_kept_and_the_rest_learns(llama, tmp_path, optimizer):
    pruned = llama(VOCABULARY)
    layers = calibrate.linears(pruned)
    for layer in layers.values():
        layer.weight.data *= torch.rand_like(layer.weight) > 0.5
    before = copy.deepcopy(pruned)
    run(pruned, tmp_path / "kept", keep_zeros=True, optimizer=optimizer)
    for name, layer in layers.items():
        start = before.get_submodule(name).weight
        assert torch.equal(layer.weight == 0, start == 0), name
        assert not torch.equal(layer.weight, start), name
    run(before, tmp_path / "lost", optimizer=optimizer)
    assert all((layer.weight != 0).float().mean() > 0.99 for layer in calibrate.linears(before).values())


def test_zeros_are_kept_over_a_kill(llama, tmp_path, monkeypatch):
    def pruned():
        model = llama(VOCABULARY)
        for layer in calibrate.linears(model).values():
            layer.weight.data[:, ::2] = 0
        return model

    whole, _ = run(pruned(), tmp_path / "whole", keep_zeros=True)
    monkeypatch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)
    with pytest.raises(KeyboardInterrupt):
        run(pruned(), tmp_path / "cut", stop_after=7, keep_zeros=True)
    assert same(whole, run(pruned(), tmp_path / "cut", keep_zeros=True)[0])


def test_what_is_held_does_not_shorten_the_steps_of_the_rest():
    """By hand: the gradient is (100, 2), clipped to length 1 it is (0, 1) where the first weight is held."""
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[0.0, 1.0]])
    steppers = [torch.optim.SGD(layer.parameters(), lr=0.1)]
    p = Training(steps=1, lr=0.1, warmup=0, clip=1.0, precision="float32")
    held = loop.zeros(torch.nn.Sequential(layer))
    loop.update(layer, steppers, lambda _: torch.tensor([[100.0, 2.0]]), lambda x: layer(x).sum(), p, 0, held)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.0, 0.9]]), atol=1e-6, rtol=0)


def test_divergence_is_an_error(model, tmp_path):
    with pytest.raises(UserError, match="training diverged: the loss is nan at step 1"):
        loop.fit(model, batch, lambda ids: loss(model, ids) * torch.nan, Training(steps=2), [], tmp_path / "c")


@pytest.mark.parametrize(
    ("cpu", "faster"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "sse4a": False}, True),  # Sapphire Rapids
        ({"amx_bf16": False, "avx512_bf16": True, "sse4a": False}, False),  # the same where a cloud hides its AMX
        ({"amx_bf16": False, "avx512_bf16": True, "sse4a": True}, True),  # Zen 4
        ({"amx_bf16": False, "avx512_bf16": False, "sse4a": True}, False),  # Zen 3
        ({}, False),  # not known, as on ARM
    ],
)
def test_sixteen_bits_where_they_are_faster(cpu, faster):
    assert loop.faster_in_16_bits(cpu) is faster


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (24, 24)])
def test_muon_is_torchs_and_in_32_bits_the_same_but_for_rounding(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(5, *shape)

    def moved(make):
        weight = nn.Parameter(start.clone())
        stepper = make([weight])
        for weight.grad in gradients:
            stepper.step()
        return weight.detach() - start

    theirs = moved(partial(torch.optim.Muon, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    assert torch.equal(moved(partial(Muon, lr=0.01, weight_decay=0.1, dtype=torch.bfloat16)), theirs)
    ours = moved(partial(Muon, lr=0.01, weight_decay=0.1, dtype=torch.float32))
    assert 0 < (ours - theirs).norm() < 0.02 * theirs.norm()


def test_muon_evens_out_every_direction():
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(16, 40) * torch.logspace(0, 1, 40), full_matrices=False)
    values = torch.linalg.svdvals(made := orthogonal(u @ s.diag() @ v, torch.float32))
    assert values.min() > 0.6 and values.max() < 1.25
    assert (u.T @ made @ v.T).diagonal().min() > 0.6  # each direction is still the same one
