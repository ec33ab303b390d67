"""Attention maps by loops, the two phases and where one ends, and heads that differ."""

import copy

import pytest
import torch

from stages.distill import SCAFFOLD, Teacher, logits, task_specific
from stages.distill.parts import layer_pairs
from stages.lib.frame.errors import UserError
from stages.lib.nets import attention
from stages.lib.store import models, records
from stages.lib.training import loop
from stages.pretrain import state_space

PARENTS = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
TRAINING = {"steps": 4, "batch_size": 2, "precision": "float32", "checkpoint_seconds": 3600}
GIVEN = {"method": "task_specific", "context": 64} | PARENTS


def make(training=TRAINING, **more):
    return task_specific.TaskSpecific(**GIVEN, training=training, **more)


def scaffolded(technique, student, teacher):
    """The student with what the stage hangs on it, and the teacher as the stage hands it over."""
    master = Teacher(teacher, None)
    student.add_module(SCAFFOLD, technique.scaffold(student, master))
    return master


@pytest.fixture
def solved(tmp_path):
    rows = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(40)]
    records.save(tmp_path / "records", train=rows)
    return tmp_path / "records"


@pytest.fixture
def batch(tokenizer, solved):
    return make().batches(tokenizer, solved)


def by_hand(model, batch):
    """softmax(q k^T / sqrt d) of every block, each example by itself: (B, H, T, T)."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, repeat_kv

    decoder, ids, positions = model.model, batch["ids"], batch["positions"]
    inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    states = model(**inputs, output_hidden_states=True).hidden_states
    example = (positions == 0).cumsum(-1)
    seen = (example[:, :, None] == example[:, None, :]).tril()[:, None]
    maps = []
    for block, x in zip(decoder.layers, states, strict=False):
        x = block.input_layernorm(x)
        q, k = (
            layer(x).unflatten(-1, (-1, 16)).transpose(1, 2)
            for layer in (block.self_attn.q_proj, block.self_attn.k_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *decoder.rotary_emb(x, positions))
        scores = q @ repeat_kv(k, q.shape[1] // k.shape[1]).transpose(-1, -2) / 4
        maps.append(scores.masked_fill(~seen, -torch.inf).softmax(-1))
    return maps


@pytest.mark.parametrize("heads", [4, 2])
def test_by_loops(heads, batch, tiny, tokenizer, llama):
    """Head by head where both have four; a student of two heads is compared in the mean."""
    student, p, part = llama(len(tokenizer), seed=1, hidden=16 * heads), make(), batch(0)
    student = student if heads == 4 else two_heads(len(tokenizer))
    teacher = scaffolded(p, student, tiny)
    mine, theirs = by_hand(student, part), by_hand(tiny, part)
    if heads == 2:
        mine, theirs = ([each.mean(1, keepdim=True) for each in maps] for maps in (mine, theirs))
    places = (part["labels"][:, 1:] != -100).nonzero().tolist()
    total = 0.0
    for a, b in zip(mine, theirs, strict=True):
        for head in range(a.shape[1]):
            for row, t in places:
                total += (a[row, head, t] - b[row, head, t]).square().sum() / (2 * a.shape[1] * len(places))
    seen = [layer_pairs.look_inside(model, part, maps=True) for model in (student, tiny)]
    pairs = [(1, 1), (2, 2)]
    torch.testing.assert_close(task_specific.attention(*seen, pairs), total, atol=1e-5, rtol=1e-4)
    expected = total + layer_pairs.distance(*seen, student.scaffold, pairs)
    torch.testing.assert_close(p.loss(student, teacher, part), expected, atol=1e-5, rtol=1e-4)


def two_heads(vocabulary):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, initializer_range=0.2)).eval()


def test_the_second_phase_is_the_soft_loss_alone(batch, tiny, tokenizer, llama):
    student, p = llama(len(tokenizer), seed=1), make(alpha=0.3, temperature=2.0)
    teacher = scaffolded(p, student, tiny)
    plain = logits.Logits(method="logits", training=TRAINING, **PARENTS, alpha=0.3, temperature=2.0)
    for index in (2, 3):
        expected = plain.loss(student, teacher, batch(index))
        torch.testing.assert_close(p.loss(student, teacher, batch(index)), expected)
    assert p.loss(student, teacher, batch(1)) != plain.loss(student, teacher, batch(1))


def test_accumulated_parts_are_of_their_step(tokenizer, solved):
    parts = make(TRAINING | {"accumulation": 2}).batches(tokenizer, solved)
    assert [parts(i)["step"].item() for i in range(6)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("index", [0, 3])
def test_nothing_is_left_to_learn_from_oneself(index, batch, tiny):
    student, p = copy.deepcopy(tiny), make()
    teacher = scaffolded(p, student, tiny)
    assert p.loss(student, teacher, batch(index)).item() == pytest.approx(0, abs=1e-6)


def test_gradients_reach_what_makes_the_maps(batch, tiny, tokenizer, llama):
    student, p, part = llama(len(tokenizer), seed=1), make(), batch(0)
    teacher = scaffolded(p, student, tiny)
    seen = [layer_pairs.look_inside(model, part, maps=True) for model in (student, tiny)]
    task_specific.attention(*seen, [(0, 0), (1, 1)]).backward()
    grads = {name: weight.grad for name, weight in student.named_parameters() if weight.grad is not None}
    assert grads["model.layers.0.self_attn.q_proj.weight"].abs().sum() > 0
    assert (
        "model.layers.1.self_attn.q_proj.weight" not in grads
    )  # an embedding attends to nothing, block 2 is not asked
    p.loss(student, teacher, part).backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in student.scaffold)


def test_afterwards_attention_is_what_it_was_even_after_an_error(batch, tiny, tokenizer, tmp_path):
    teacher = scaffolded(make(), tiny, tiny)
    make().loss(tiny, teacher, batch(0))
    assert tiny.config._attn_implementation == "sdpa"
    with pytest.raises(KeyError), attention.attending(tiny, "eager"):
        assert tiny.config._attn_implementation == "eager"
        raise KeyError
    assert tiny.config._attn_implementation == "sdpa"
    del tiny.scaffold
    models.save(tiny, tokenizer, tmp_path / "model")
    assert models.load(tmp_path / "model").config._attn_implementation == "sdpa"


def test_interrupted_in_either_phase_it_ends_in_the_same_weights(batch, tiny, tokenizer, llama, tmp_path, monkeypatch):
    p = make()

    def run(folder, stop_after=None):
        student, curve = llama(len(tokenizer), seed=1), []
        teacher = scaffolded(p, student, tiny)

        def feed(index):
            if index == stop_after:
                raise KeyboardInterrupt
            return batch(index)

        loop.fit(student, feed, lambda part: p.loss(student, teacher, part), p.training, curve, folder)
        return student

    whole = run(tmp_path / "whole").state_dict()
    clock = iter(range(0, 10**9, 5000)).__next__  # a checkpoint every step
    monkeypatch.setattr(loop, "monotonic", clock)
    for stop_after in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(stop_after), stop_after)
        resumed = run(tmp_path / str(stop_after)).state_dict()
        assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_a_model_without_attention_is_refused(tiny, tokenizer):
    p = state_space.StateSpace(method="state_space", tokens="a/b", hidden=32, layers=2, head_dim=16, state=8, chunk=16)
    with pytest.raises(UserError, match="compares attention maps, and a/b has layers without"):
        make().scaffold(p.build(tokenizer), Teacher(tiny, tokenizer))
