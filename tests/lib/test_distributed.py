"""Two processes train what one does (gloo, here). `main` stands for a stage's: its own process ends with the model."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks._families import make
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.store import models
from stages.lib.text import packing
from stages.lib.training import distributed, loop
from stages.lib.training.config import Training
from tests.conftest import build_llama

pytestmark = pytest.mark.slow
STEPS = 6
ALONE = {"steps": STEPS, "batch_size": 8, "precision": "float32", "lr": 0.01}
DDP, FSDP = {"devices": 2}, {"devices": 2, "parallel": "fsdp"}
CASES = {
    "ddp": DDP,
    "ddp, accumulated": DDP | {"accumulation": 2},
    "ddp, adamw": DDP | {"optimizer": "adamw"},
    "ddp, recomputed": DDP | {"checkpoint_activations": True},
    "ddp, rounded": DDP | {"fake_quantize": {"weights": "ternary"}},
    "fsdp": FSDP,
    "fsdp, accumulated": FSDP | {"accumulation": 2},
    "fsdp, adamw": FSDP | {"optimizer": "adamw"},
    "fsdp, recomputed": FSDP | {"checkpoint_activations": True},
    "fsdp, zeros": FSDP | {"keep_zeros": True},
    "fsdp, 16 bits": FSDP | {"precision": "bfloat16"},
}
ONLY_HERE = ("devices", "parallel", "accumulation", "checkpoint_activations")  # what changes nothing in the result
CUT = 3  # the step that isn't done where a training is cut short
MOVES = {"ddp to one": (DDP, {}), "fsdp to one": (FSDP, {}), "one to ddp": ({}, DDP), "one to fsdp": ({}, FSDP)}
TIGHT = {"atol": 1e-5, "rtol": 0}
LOOSE = {
    "ddp, adamw": 5e-4,
    "fsdp, adamw": 5e-4,
    "ddp, rounded": 1e-3,
    "fsdp, 16 bits": 0.05,
}


FAMILIES = ["gemma3", "phi3", "qwen3_moe", "deepseek_v3", "mamba2", "falcon_h1"]
SHORT = {"steps": 2, "lr": 1e-3}


class Cut(Exception):
    pass


class Vocabulary:
    """What a model wants to know of a tokenizer."""

    pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

    def __len__(self):
        return 64


def batch(size, index):
    """Rows whose replies are of 1 to 15 tokens: a mean of the devices' means would be another loss."""
    every_ids = torch.randint(64, (STEPS * 8, 16), generator=torch.Generator().manual_seed(0))
    chosen = torch.arange(index * size, (index + 1) * size)
    learnt = torch.tensor([2, 1, 3, 3, 9, 15, 1, 12])[chosen % 8]
    labels = every_ids[chosen].clone()
    labels[torch.arange(16) < 16 - learnt[:, None]] = packing.IGNORE
    return {"ids": every_ids[chosen], "labels": labels, "positions": torch.arange(16).expand_as(labels)}


def fit(training, place, stop_after=None, family=None):
    """Weights and curve; with a checkpoint after every step."""
    p, curve = Training.model_validate(ALONE | training), []
    model = models.place(make(family, Vocabulary()) if family else build_llama(64))
    if p.keep_zeros:
        for weight in model.model.layers.parameters():
            weight.data *= weight.data.abs() > 0.02

    def stopping(index):
        if index // p.parts == stop_after:
            raise Cut
        return batch(p.part_size, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)
        loop.fit(model, stopping, partial(packed.loss, model), p, curve, place, terms=packing.learnt)
    return [weight.detach() for weight in model.parameters()], curve


def main(folder: Path):
    """Every case and every move, one after another in the same two processes."""
    arguments = dict(locals())
    for name, (first, _) in MOVES.items():
        if not first and not distributed.active():
            with pytest.raises(Cut):
                fit(first, folder / name, CUT)
    distributed.start(main, arguments, Training.model_validate(ALONE | DDP))
    found = {}
    for name, training in CASES.items():
        try:
            found[name] = fit(training, folder / name)
        except distributed.Trained:
            continue
    for name in FAMILIES:
        try:
            found[name] = fit(FSDP | SHORT, folder / name, family=name)
        except distributed.Trained:
            continue
    for name, (first, second) in MOVES.items():
        try:
            if distributed.active():
                fit(first or second, folder / name, CUT if first else None)
            else:
                found[name] = fit(second, folder / name)
        except (distributed.Trained, Cut):
            continue
    if distributed.active():
        raise distributed.Trained
    assert not any(folder.iterdir()), "a finished run needs no checkpoint"
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return main(tmp_path_factory.mktemp("two"))


def expected(training, folder):
    return fit({name: value for name, value in training.items() if name not in ONLY_HERE}, folder / "one")


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_like_one(found, tmp_path, name):
    (weights, curve), (wanted, alone) = found[name], expected(CASES[name], tmp_path)
    near = TIGHT | ({"atol": LOOSE[name]} if name in LOOSE else {})
    assert [row["step"] for row in curve] == list(range(1, STEPS + 1))
    torch.testing.assert_close([row["loss"] for row in curve], [row["loss"] for row in alone], **near)
    torch.testing.assert_close(weights, wanted, **near)
    assert not torch.equal(wanted[0], build_llama(64).model.embed_tokens.weight), "it has learnt something"


@pytest.mark.parametrize("name", FAMILIES)
def test_shares_of_any_family(found, tmp_path, name):
    (weights, curve), (wanted, alone) = found[name], fit(SHORT, tmp_path / "one", family=name)
    torch.testing.assert_close([row["loss"] for row in curve], [row["loss"] for row in alone], atol=1e-4, rtol=0)
    torch.testing.assert_close(weights, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MOVES)
def test_a_checkpoint_resumes_on_another_number_of_processes(found, tmp_path, name):
    (weights, curve), (wanted, alone) = found[name], fit({}, tmp_path / "one")
    torch.testing.assert_close([row["loss"] for row in curve], [row["loss"] for row in alone], **TIGHT)
    torch.testing.assert_close(weights, wanted, **TIGHT)


def test_a_mean_of_means_would_have_been_seen(tmp_path):
    def first_loss(terms):
        p, model, curve = Training.model_validate(ALONE | {"steps": 1, "accumulation": 2}), build_llama(64), []
        loop.fit(model, partial(batch, 4), partial(packed.loss, model), p, curve, tmp_path / "c", terms=terms)
        return curve[0]["loss"]

    with torch.no_grad():
        whole = packed.loss(build_llama(64), batch(8, 0)).item()
    assert first_loss(packing.learnt) == pytest.approx(whole, abs=1e-6)
    assert abs(first_loss(lambda part: 1) - whole) > 1e-3


def test_compiled_blocks_learn_the_same(tmp_path):
    (weights, curve), (wanted, alone) = (fit(SHORT | more, tmp_path / "c") for more in ({"compile": True}, {}))
    torch.testing.assert_close([row["loss"] for row in curve], [row["loss"] for row in alone], **TIGHT)
    torch.testing.assert_close(weights, wanted, **TIGHT)


def killed(folder: Path):
    """The second of two processes is killed in the fourth step, once."""
    arguments = dict(locals())
    p = Training.model_validate(ALONE | FSDP)
    distributed.start(killed, arguments, p)
    model, curve = build_llama(64), []

    def dangerous(index):
        if index == 2 * CUT + 1 and not (folder / "killed").exists():
            (folder / "killed").touch()
            assert files.sealed(folder / "checkpoint")
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(p.part_size, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)
        loop.fit(model, dangerous, partial(packed.loss, model), p, curve, folder / "checkpoint", terms=packing.learnt)
    return [weight.detach() for weight in model.parameters()], curve


def test_after_a_kill_all_go_on_from_the_last_checkpoint(tmp_path, capfd):
    weights, curve = killed(tmp_path)
    wanted, alone = fit({}, tmp_path / "one")
    assert (tmp_path / "killed").exists() and "go on from the last checkpoint (1 of 3)" in capfd.readouterr().out
    torch.testing.assert_close(weights, wanted, **TIGHT)
    assert len(curve) == len(alone) == STEPS


def refusing(folder: Path):
    arguments = dict(locals())
    p = Training.model_validate(ALONE | DDP)
    distributed.start(refusing, arguments, p)
    if distributed.rank() == 1:
        raise UserError("params.yaml: something that a user can put right")
    distributed.totals([1.0], torch.device("cpu"))  # which never come


def test_what_a_user_can_put_right_is_one_line(tmp_path, capfd):
    with pytest.raises(UserError, match=r"^params.yaml: something that a user can put right$"):
        refusing(tmp_path)
    assert not capfd.readouterr().err
