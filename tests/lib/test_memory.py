"""The estimate of a training's memory against what one takes, and whom it refuses."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from stages.eval.parts.memory import peak, reset_peak
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses
from stages.lib.training import blocks, loop, memory, optimizers
from stages.lib.training.config import Training


def build(hidden, layers, vocabulary):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            tie_word_embeddings=True,
        )
    )


def compared(hidden, layers, vocabulary, shape, more):
    """Bytes that are estimated for a step, and those that it takes."""
    p = Training.model_validate({"steps": 1, "batch_size": shape[0], "precision": "float32"} | more)
    update(build(16, 1, 16), torch.zeros((1, 4), dtype=torch.long), p)  # what is loaded at first use
    model, ids, before = build(hidden, layers, vocabulary), torch.randint(vocabulary, shape), reset_peak()
    assert before
    needs = memory.kept(model, p) | memory.activations(memory.per_token(model, p, False), vocabulary, ids)
    update(model, ids, p)
    return sum(needs.values()), peak() - before


def update(model, ids, p):
    with blocks.computing(model.train(), p):
        loop.update(
            model,
            optimizers.optimizers(model, p),
            lambda _: ids,
            lambda part: losses.next_token(model(part, use_cache=False).logits, part),
            p,
            0,
        )


@pytest.mark.slow
@pytest.mark.skipif(reset_peak() is None, reason="the peak of a process is Linux's to tell")
def test_the_estimate_is_within_a_factor_of_what_a_step_takes():
    shapes = [
        (256, 4, 1024, (16, 256), {}),
        (512, 2, 8192, (4, 256), {"optimizer": "adamw"}),
        (512, 8, 1024, (8, 256), {"checkpoint_activations": True}),
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as fresh:  # memory that was freed is taken again unseen
        for shape in shapes:
            estimated, taken = fresh.submit(compared, *shape).result()
            assert taken / memory.MARGIN < estimated < taken * memory.MARGIN, shape


def test_what_does_not_fit_is_refused_before_it_is_computed(tiny, tmp_path, monkeypatch):
    def never(part):
        raise AssertionError("computed")

    monkeypatch.setattr(memory, "available", lambda device, p: 1e6)
    p = Training(steps=1, batch_size=4, precision="float32")
    with pytest.raises(UserError, match=r"training takes about .* GB .*activations.* are free; .*`accumulation`.*fsdp"):
        loop.fit(tiny, lambda _: torch.zeros(4, 64, dtype=torch.long), never, p, [], tmp_path / "c")


def test_a_checkpoint_has_brought_its_moments(tiny, monkeypatch):
    p, asked = Training(steps=9, batch_size=4, precision="float32"), []
    monkeypatch.setattr(memory, "require", lambda needs, p, free: asked.append(set(needs)))
    for first in (0, 3):
        part = memory.guarded(lambda _: torch.zeros(4, 64, dtype=torch.long), tiny, p, False)
        part(first), part(first + 1)
    assert asked == [{"gradients", "moments", "activations", "logits"}, {"gradients", "activations", "logits"}]


def test_shares_need_less_and_gather_blocks(tiny):
    whole, half = (memory.kept(tiny, Training(steps=1, devices=2, parallel=kind)) for kind in ("ddp", "fsdp"))
    assert half["gradients"] == whole["gradients"] / 2 and half["moments"] == whole["moments"] / 2
    weights = 4 * tiny.num_parameters()
    assert half["gathered weights"] == weights, "two blocks, which are both of this one, and the rest"
