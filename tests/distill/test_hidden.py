"""The hint by loops, nothing to learn from oneself, gradients into the projections, and wrong maps by name."""

import copy

import pytest
import torch
import torch.nn.functional as F

from stages.distill import SCAFFOLD, Teacher, hidden
from stages.distill.parts import layer_pairs
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.store import records
from stages.lib.training import optimizers
from stages.pretrain import state_space

PARENTS = dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
GIVEN = {"method": "hidden", "training": {"steps": 1, "batch_size": 2}} | PARENTS


def make(**more):
    return hidden.Hidden(**GIVEN, **more)


def scaffolded(technique, student, teacher):
    """The student with what the stage hangs on it, and the teacher as the stage hands it over."""
    master = Teacher(teacher, None)
    student.add_module(SCAFFOLD, technique.scaffold(student, master))
    return master


@pytest.fixture
def batch(tokenizer, tmp_path):
    """Two packed rows of problems with different lengths, so that there is padding and several examples a row."""
    solved = [{"id": str(n), "prompt": f"Say {'again ' * (n % 3)}{n}", "solution": f"#### {n}"} for n in range(12)]
    records.save(tmp_path, train=solved)
    return make(context=96).batches(tokenizer, tmp_path)(0)


def test_by_loops(batch, tiny, tokenizer, llama):
    """One state at a time, a wide student and a narrow teacher, projections that are not the identity."""
    student, p = llama(len(tokenizer), seed=1, hidden=96), make(layers=[[0, 1], [2, 2]], beta=0.7, alpha=0.4)
    teacher = scaffolded(p, student, tiny)
    inputs = {"input_ids": batch["ids"], "position_ids": batch["positions"], "use_cache": False}
    with torch.no_grad():
        for linear in student.scaffold:
            linear.weight += torch.randn_like(linear.weight) / 10
        mine, theirs = (model(**inputs, output_hidden_states=True) for model in (student, tiny))
        shares, predictions = [], []
        for linear, (i, j) in zip(student.scaffold, [(0, 1), (2, 2)], strict=True):
            missed = whole = 0.0
            for b, t in (batch["labels"][:, 1:] != -100).nonzero().tolist():
                wanted = theirs.hidden_states[j][b, t]
                missed += (linear.weight @ mine.hidden_states[i][b, t] - wanted).square().sum()
                whole += wanted.square().sum()
            shares.append(missed / whole)
        for b, t in (batch["labels"][:, 1:] != -100).nonzero().tolist():
            log_p, log_q = ((out.logits[b, t] / 2).log_softmax(-1) for out in (theirs, mine))
            hard = F.cross_entropy(mine.logits[b, t], batch["ids"][b, t + 1])
            predictions.append(0.4 * hard + 0.6 * 4 * (log_p.exp() * (log_p - log_q)).sum())
        expected = sum(predictions) / len(predictions) + 0.7 * (shares[0] + shares[1]) / 2
        torch.testing.assert_close(p.loss(student, teacher, batch), expected)


def test_predictions_are_those_of_the_replies(batch, tiny):
    seen = layer_pairs.look_inside(tiny, batch)
    logits_NV, tokens_N = packed.logits(tiny, batch)
    assert torch.equal(seen.logits, logits_NV) and torch.equal(seen.tokens, tokens_N)


def test_nothing_is_left_to_learn_from_oneself(batch, tiny):
    student, p = copy.deepcopy(tiny), make(alpha=0.0)
    teacher = scaffolded(p, student, tiny)
    assert p.loss(student, teacher, batch).item() == pytest.approx(0, abs=1e-6)


def test_of_another_width_it_asks_nothing_before_the_projection_knows_something(batch, tiny, tokenizer, llama):
    student, p = llama(len(tokenizer), seed=1, hidden=32), make(alpha=1.0)
    teacher = scaffolded(p, student, tiny)
    whole, prediction = p.loss(student, teacher, batch), packed.loss(student, batch)
    assert (whole - prediction).item() == pytest.approx(p.beta)  # all of |h|^2 is missed
    asked = torch.autograd.grad(whole - prediction, student.model.embed_tokens.weight)[0]
    assert asked.abs().max() < 1e-6


def test_token_rows_count_every_position(rows, tiny, tokenizer, llama):
    student, p = llama(len(tokenizer), seed=1), make(alpha=1.0, beta=0)
    teacher = scaffolded(p, student, tiny)
    expected = F.cross_entropy(student(rows[:2]).logits[:, :-1].flatten(0, 1), rows[:2, 1:].flatten())
    torch.testing.assert_close(p.loss(student, teacher, {"ids": rows[:2]}), expected)


def test_gradients_reach_projections_and_student_but_not_the_teacher(batch, tiny, tokenizer, llama):
    student, p = llama(len(tokenizer), seed=1, hidden=32), make()
    teacher = scaffolded(p, student, tiny)
    p.loss(student, teacher, batch).backward()
    assert len(student.scaffold) == 2
    assert all(weight.grad.abs().sum() > 0 for weight in student.parameters())
    assert all(weight.grad is None for weight in tiny.parameters())
    adamw, muon = optimizers.optimizers(student, p.training)
    held = [w for group in adamw.param_groups for w in group["params"]]
    assert all(any(w is linear.weight for w in held) for linear in student.scaffold)


def test_the_projection_that_made_the_teacher_leaves_no_distance(tiny, batch):
    """Teacher = student with its states turned: no distance is left where W is that turn."""
    student, p = copy.deepcopy(tiny), make(layers=[[1, 1]])
    scaffolded(p, student, tiny)
    mine = layer_pairs.look_inside(student, batch)
    turn = torch.linalg.qr(torch.randn(64, 64))[0]
    theirs = mine._replace(states=[state.detach() @ turn for state in mine.states])
    assert layer_pairs.distance(mine, theirs, student.scaffold, [(1, 1)]) > 0.5
    student.scaffold[0].weight.data = turn.T.clone()
    assert layer_pairs.distance(mine, theirs, student.scaffold, [(1, 1)]).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("depths", "expected"),
    [((2, 4), [(1, 2), (2, 4)]), ((3, 4), [(1, 2), (2, 3), (3, 4)]), ((4, 2), [(1, 1), (2, 1), (3, 2), (4, 2)])],
)
def test_by_default_evenly_spread_last_to_last(depths, expected):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    models = [LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=depth)) for depth in depths]
    assert layer_pairs.pair(*models, None, "a/b") == expected


def test_a_layer_that_does_not_exist_is_refused(tiny, tokenizer, llama):
    student = llama(len(tokenizer), seed=1)
    with pytest.raises(UserError, match=r"layers has \[3, 1\], but the student has no layer 3; allowed: 0 to 2"):
        scaffolded(make(layers=[[3, 1]]), student, tiny)
    with pytest.raises(UserError, match=r"layers has \[2, 9\], but a/b has no layer 9; allowed: 0 to 2"):
        scaffolded(make(layers=[[1, 1], [2, 9]]), student, tiny)
    assert not hasattr(student, "scaffold")
    with pytest.raises(UserError, match=r"distill.mine.layers.0.1 is -1: input should be greater than or equal to 0"):
        params.technique("distill", "mine", GIVEN | {"layers": [[1, -1]]})


def test_a_state_space_model_is_seen_example_by_example(batch, tiny, tokenizer):
    """Its states stand beside the teacher's, reply token by reply token, and no example has seen another."""
    p = state_space.StateSpace(method="state_space", tokens="a/b", hidden=32, layers=2, head_dim=16, state=8, chunk=16)
    student = p.build(tokenizer).eval()
    mine, theirs = layer_pairs.look_inside(student, batch), layer_pairs.look_inside(tiny, batch)
    assert torch.equal(mine.tokens, theirs.tokens) and len(mine.states) == len(theirs.states)
    assert torch.equal(mine.logits, packed.logits(student, batch)[0])
