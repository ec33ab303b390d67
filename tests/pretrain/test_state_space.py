"""The state-space decoder: its recurrence by loops, its shapes, and a whole life as student, runtime and file."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models
from stages.pretrain import state_space

SHAPE = {"hidden": 32, "layers": 2, "head_dim": 16, "state": 8, "chunk": 8}


def technique(**more):
    return state_space.StateSpace(method="state_space", tokens="tokenize/bpe", **SHAPE | more)


@pytest.fixture
def model(tokenizer):
    return technique().build(tokenizer).eval()


def test_a_block_is_the_recurrence_by_loops(model):
    torch.manual_seed(0)
    mixer, x_TD = model.backbone.layers[0].mixer, torch.randn(21, 32)
    gate, xbc, dt = mixer.in_proj(x_TD).split([64, 80, 4], dim=-1)
    padded = torch.cat([torch.zeros(3, 80), xbc])
    xbc = torch.stack(
        [F.silu((padded[t : t + 4].T * mixer.conv1d.weight[:, 0]).sum(1) + mixer.conv1d.bias) for t in range(21)]
    )
    dt, state, said = F.softplus(dt + mixer.dt_bias), torch.zeros(4, 16, 8), []
    for t in range(21):
        x, b, c = xbc[t, :64].view(4, 16), xbc[t, 64:72], xbc[t, 72:]
        decay = (-mixer.A_log.exp() * dt[t]).exp()
        state = decay[:, None, None] * state + dt[t][:, None, None] * x[:, :, None] * b
        said.append((state @ c + mixer.D[:, None] * x).flatten())
    y = torch.stack(said) * F.silu(gate)
    y = y * (y.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x_TD[None])[0], mixer.out_proj(y), atol=1e-5, rtol=1e-4)


def test_parameters_by_hand(model, tokenizer):
    inner, heads, convolved = 64, 4, 64 + 2 * 8
    mixer = 32 * (inner + convolved + heads) + convolved * (4 + 1) + 3 * heads + inner + inner * 32
    assert model.num_parameters() == len(tokenizer) * 32 + 2 * (mixer + 32) + 32  # embeddings are the head too


@pytest.mark.parametrize("wrong", [{"head_dim": 24}, {"groups": 3}])
def test_shapes_that_do_not_divide_are_refused(wrong):
    with pytest.raises(ValidationError, match="hidden x expand must be a multiple of head_dim, the heads of that of"):
        technique(**wrong)


def test_saved_loaded_and_run_by_the_runtime(model, tokenizer, rows, tmp_path):
    """Prompts of unequal lengths, padded on the left together, get what each gets alone by a loop over logits."""
    models.save(model, tokenizer, tmp_path / "model")
    runtime = open_runtime(tmp_path / "model")
    prompts = [row[: 3 + 7 * (i % 4)] for i, row in enumerate(rows[:6].tolist())]
    with torch.no_grad():
        torch.testing.assert_close(
            torch.tensor(runtime.logits(prompts[1])), model(torch.tensor(prompts[1:2])).logits[0]
        )
    for prompt, said in zip(prompts, runtime.generate(prompts, 6), strict=True):
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(runtime.logits(ids)[-1].argmax()))
        assert said == ids[len(prompt) :]
    number, size = runtime.size()
    assert (number, size) == (model.num_parameters(), 4 * model.num_parameters())


@pytest.mark.parametrize("method", ["logits", "solutions"])
def test_a_transformer_teaches_it(method, model, tiny, tokenizer, tmp_path):
    """Live, from one packed batch that each of the two reads in its own way."""
    from stages.distill import Teacher
    from stages.lib.frame import params
    from stages.lib.store import records
    from stages.lib.training import loop

    parents = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
    given = {"method": method, **parents, "training": {"steps": 8, "batch_size": 4, "lr": 1e-2}}
    technique: Any = params.technique("distill", "student", given)
    records.save(tmp_path, train=[{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(30)])
    batch, curve, teacher = technique.batches(tokenizer, tmp_path), [], Teacher(tiny, tokenizer)
    loop.fit(model, batch, lambda part: technique.loss(model, teacher, part), technique.training, curve, tmp_path / "c")
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
