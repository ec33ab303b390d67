"""Mixtures by loops, a teacher mixed with itself, the choice by entropy, and what is refused."""

import math

import pytest
import torch

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import traces
from stages.traces import logits, multi_teacher

GIVEN = {"model": "a/b", "problems": "a/b", "tokens": "a/b", "temperature": 2.0}


def params(**more):
    return multi_teacher.Params(method="multi_teacher", **GIVEN | {"k": 8, "batch_size": 4} | more)


def save(folder, items):
    with files.writing(folder) as temporary:
        traces.save(temporary, {"technique": {"temperature": 2.0}}, items)
    return folder


@pytest.fixture
def base(tiny, tokenizer, rows, tmp_path):
    p = logits.Params(method="logits", rows=7, k=8, batch_size=5, **GIVEN)
    return save(tmp_path / "base", logits.record(tiny, tokenizer, [], rows.numpy().astype("uint16"), p))


def joined(teacher, base, **more):
    """What `batches` reads of a recording that another teacher has joined."""
    folder = save(base.with_name("joined"), multi_teacher.record(teacher, None, base, None, params(**more)))
    return traces.batches(folder, 7)(0)


@pytest.fixture
def pair():
    """Recorded p of the 4 likeliest of 11 tokens, and q."""
    torch.manual_seed(0)
    whole, q = (torch.randn(2, 3, 11).mul(2).softmax(-1) for _ in range(2))
    return *whole.topk(4), q, whole


def test_the_mixture_by_loops(pair):
    top, index, q, _ = pair
    mixed = multi_teacher.mix(top, index, q, params(weight=0.3))
    for b in range(2):
        for t in range(3):
            known = dict(zip(index[b, t].tolist(), top[b, t].tolist(), strict=True))
            left = 1 - sum(known.values())
            outside = sum(q[b, t, v].item() for v in range(11) if v not in known)
            for v in range(11):
                share = min(left * q[b, t, v].item() / outside, min(known.values()))
                expected = 0.7 * known.get(v, share) + 0.3 * q[b, t, v].item()
                assert mixed[b, t, v].item() == pytest.approx(expected, abs=1e-6)


def test_of_everything_recorded_it_is_the_plain_average(pair):
    _, _, q, whole = pair
    top, index = whole.topk(11)
    torch.testing.assert_close(multi_teacher.mix(top, index, q, params()), (whole + q) / 2)


@pytest.mark.parametrize("route", ["mixture", "confidence"])
def test_a_teacher_joined_by_itself_is_itself(tiny, base, route):
    once, twice = traces.batches(base, 7)(0), joined(tiny, base, route=route)
    assert torch.equal(once["ids"], twice["ids"])
    torch.testing.assert_close(once["logprob"].float(), twice["logprob"].float(), atol=4e-3, rtol=0)
    same = torch.isclose(once["logprob"].float().diff(dim=-1), torch.tensor(0.0), atol=8e-3)  # near-ties may swap
    assert ((once["index"] == twice["index"])[..., 1:] | same | same.roll(-1, -1)).float().mean() > 0.99


def test_weight_0_and_1_are_the_one_and_the_other_teacher(base, tokenizer, rows, llama):
    other = llama(len(tokenizer), seed=3)
    p = logits.Params(method="logits", rows=7, k=8, batch_size=5, **GIVEN)
    its_own = save(base.with_name("other"), logits.record(other, tokenizer, [], rows.numpy().astype("uint16"), p))
    for weight, alone in ((0, base), (1, its_own)):
        expected = traces.batches(alone, 7)(0)
        both = joined(other, base, weight=weight)
        torch.testing.assert_close(both["logprob"], expected["logprob"], atol=4e-3, rtol=0)
        assert (both["index"] == expected["index"]).float().mean() > 0.99  # a near-tie may swap


def test_the_surer_teacher_is_heard_at_every_position(pair):
    """Of a recording of everything, so that entropies are those of the whole distributions."""
    _, _, q, whole = pair
    top, index = whole.topk(11)
    chosen = multi_teacher.mix(top, index, q, params(route="confidence"))
    heard = set()
    for b in range(2):
        for t in range(3):
            entropies = [-sum(x * math.log(x) for x in each[b, t].tolist()) for each in (whole, q)]
            surer = min((0, 1), key=entropies.__getitem__)
            torch.testing.assert_close(chosen[b, t], (whole, q)[surer][b, t])
            heard.add(surer)
    assert heard == {0, 1}


def test_a_nearly_flat_teacher_is_not_heard_however_little_was_recorded(pair):
    top, index, q, _ = pair
    chosen = multi_teacher.mix(top, index, q.pow(0.01) / q.pow(0.01).sum(-1, keepdim=True), params(route="confidence"))
    torch.testing.assert_close(chosen.gather(-1, index), top)


def test_a_base_of_another_kind_or_temperature_is_refused_before_the_teacher_is_asked(base):
    with pytest.raises(UserError, match="temperature is 3.0, but .*base was recorded at 2.0"):
        next(multi_teacher.record(None, None, base, None, params(temperature=3.0)))
    with pytest.raises(UserError, match="problems is 'a/b'; multi_teacher wants a `method: logits` recording"):
        next(multi_teacher.record(None, None, [{"prompt": "Say 7"}], None, params()))
