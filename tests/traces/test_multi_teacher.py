"""Mixtures by loops, a teacher mixed with itself, the choice by entropy, and what is refused."""

import math

import pytest
import torch
from pydantic import ValidationError

from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import tokens, traces
from stages.traces import logits, multi_teacher

GIVEN = {"model": "a/b", "source": "a/b", "temperature": 2.0}


def params(**more):
    return multi_teacher.MultiTeacher(method="multi_teacher", **GIVEN | {"k": 8, "batch_size": 4} | more)


def save(folder, items):
    with files.writing(folder) as temporary:
        traces.save(temporary, {"technique": {"temperature": 2.0}}, items)
    return folder


@pytest.fixture
def source(rows, tmp_path):
    """A token variant."""
    tokens.save(tmp_path / "source/tokens", {"vocab_size": 512}, train=rows.numpy().astype("uint16"))
    return tmp_path / "source"


@pytest.fixture
def base(tiny, source, tmp_path):
    """A traces variant."""
    p = logits.Logits(method="logits", rows=7, k=8, batch_size=5, **GIVEN)
    save(tmp_path / "base/records", p.record(tiny, source))
    return tmp_path / "base"


def joined(teacher, base, **more):
    """What `batches` reads of a recording that another teacher has joined."""
    folder = save(base.with_name("joined"), params(**more).record(teacher, base))
    return traces.batches(folder, 7)(0)


@pytest.fixture
def pair():
    """Recorded p of the 4 likeliest of 11 tokens, and q."""
    torch.manual_seed(0)
    whole, q = (torch.randn(2, 3, 11).mul(2).softmax(-1) for _ in range(2))
    return *whole.topk(4), q, whole


def test_the_mixture_by_loops(pair):
    top, index, q, _ = pair
    mixed = params(weight=0.3).mix(top, index, q)
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
    torch.testing.assert_close(params().mix(top, index, q), (whole + q) / 2)


@pytest.mark.parametrize("route", ["mixture", "confidence"])
def test_a_teacher_joined_by_itself_is_itself(tiny, base, route):
    once, twice = traces.batches(base / "records", 7)(0), joined(tiny, base, route=route)
    assert torch.equal(once["ids"], twice["ids"])
    torch.testing.assert_close(once["logprob"].float(), twice["logprob"].float(), atol=4e-3, rtol=0)
    same = torch.isclose(once["logprob"].float().diff(dim=-1), torch.tensor(0.0), atol=8e-3)  # near-ties may swap
    assert ((once["index"] == twice["index"])[..., 1:] | same | same.roll(-1, -1)).float().mean() > 0.99


def test_weight_0_and_1_are_the_one_and_the_other_teacher(base, source, tokenizer, llama):
    other = llama(len(tokenizer), seed=3)
    p = logits.Logits(method="logits", rows=7, k=8, batch_size=5, **GIVEN)
    its_own = save(base.with_name("other"), p.record(other, source))
    for weight, alone in ((0, base / "records"), (1, its_own)):
        expected = traces.batches(alone, 7)(0)
        both = joined(other, base, weight=weight)
        torch.testing.assert_close(both["logprob"], expected["logprob"], atol=4e-3, rtol=0)
        assert (both["index"] == expected["index"]).float().mean() > 0.99  # a near-tie may swap


def test_the_surer_teacher_is_heard_at_every_position(pair):
    """Of a recording of everything, so that entropies are those of the whole distributions."""
    _, _, q, whole = pair
    top, index = whole.topk(11)
    chosen = params(route="confidence").mix(top, index, q)
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
    chosen = params(route="confidence").mix(top, index, q.pow(0.01) / q.pow(0.01).sum(-1, keepdim=True))
    torch.testing.assert_close(chosen.gather(-1, index), top)


def test_a_base_of_another_kind_or_temperature_is_refused_before_the_teacher_is_opened(base, model_folder, tmp_path):
    about = files.read_json(base / "records/about.json")
    same = {"tokenizer": files.digest(model_folder / "tokenizer.json"), "tokens": "t"}
    files.write_json(base / "records/about.json", about | same)
    assert params().made_of(model_folder, base) == {"teacher": files.digest(model_folder)} | same
    with pytest.raises(UserError, match="temperature is 3.0, but .*base/records was recorded at 2.0"):
        params(temperature=3.0).made_of(model_folder, base)
    with pytest.raises(UserError, match="source is 'a/b'; multi_teacher wants a `method: logits` recording"):
        params().made_of(model_folder, tmp_path)


def test_a_weight_that_nothing_is_weighed_with_is_refused():
    with pytest.raises(ValidationError, match="weight is 0.3, but it counts only with `route: mixture`"):
        params(route="confidence", weight=0.3)
