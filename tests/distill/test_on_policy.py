"""The divergence by loops, at equality, mirrored and against trl's; what the student writes; that resume is exact."""

import copy

import pytest
import torch

from stages.distill import Teacher, on_policy
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.store import records
from stages.lib.text import chat
from stages.lib.training import loop

GIVEN = {"method": "on_policy"} | dict.fromkeys(("model", "teacher", "traces", "tokens"), "a/b")
TRAINING = {"steps": 4, "batch_size": 2, "precision": "float32"}
ROWS = [{"id": str(n), "prompt": f"Say {'so ' * (n % 4)}{n}", "solution": f"#### {n}"} for n in range(40)]


def params(**more):
    samples = {"max_new_tokens": 10} if more.get("on_policy", 1) else {}
    return on_policy.OnPolicy(**GIVEN | {"training": TRAINING} | samples | more)


@pytest.fixture
def batches(tokenizer, tmp_path):
    records.save(tmp_path, train=ROWS)
    return lambda p: p.batches(tokenizer, tmp_path)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return torch.randn(5, 11) * 3, torch.randn(5, 11) * 3  # student, teacher


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_by_loops(pair, beta):
    q, p = (x.double().softmax(-1) for x in pair)
    total = 0.0
    for n in range(5):
        for v in range(11):
            m = beta * p[n, v] + (1 - beta) * q[n, v]
            if beta == 0:
                total += p[n, v] * (p[n, v] / q[n, v]).log()
            elif beta == 1:
                total += q[n, v] * (q[n, v] / p[n, v]).log()
            else:
                total += beta * p[n, v] * (p[n, v] / m).log() + (1 - beta) * q[n, v] * (q[n, v] / m).log()
    torch.testing.assert_close(on_policy.divergence(*pair, beta).double(), total / 5, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_of_the_teachers_likeliest_tokens_alone(pair, beta):
    student, teacher = pair
    total = 0.0
    for q_V, p_V in zip(student.double(), teacher.double(), strict=True):
        some = sorted(range(11), key=lambda v: -p_V[v])[:3]
        q, p = (x_V[some].exp() / x_V[some].exp().sum() for x_V in (q_V, p_V))
        m = beta * p + (1 - beta) * q if 0 < beta < 1 else torch.ones(3)
        sides = {0.0: [(1, p, q)], 1.0: [(1, q, p)]}.get(beta, [(beta, p, m), (1 - beta, q, m)])
        total += sum(share * one[v] * (one[v] / other[v]).log() for share, one, other in sides for v in range(3))
    found = on_policy.divergence(student, teacher, beta, top_k=3)
    torch.testing.assert_close(found.double(), total / 5, rtol=1e-5, atol=1e-6)
    whole = on_policy.divergence(student, teacher, beta, top_k=100)
    torch.testing.assert_close(whole, on_policy.divergence(student, teacher, beta))


def test_the_data_come_first_and_forward(batches, tiny, tokenizer):
    p = params(on_policy=1, beta=1.0, warm_up=0.5, training=TRAINING | {"batch_size": 4, "accumulation": 2})
    feed, torch_seed = batches(p), 1
    assert ["seed" in feed(i) for i in range(8)] == [False] * 4 + [True] * 4  # two parts a step, two steps of four
    torch.manual_seed(torch_seed)
    other = Teacher(copy.deepcopy(tiny), tokenizer)
    with torch.no_grad():
        other.model.lm_head.weight += 0.1 * torch.randn_like(other.model.lm_head.weight)
    q, t = (packed.logits(model, feed(0))[0].log_softmax(-1) for model in (tiny, other.model))
    assert p.loss(tiny, other, feed(0)).item() == pytest.approx((t.exp() * (t - q)).sum(-1).mean().item(), rel=1e-4)


def test_replies_that_were_cut_off_can_be_left_out(batches, tiny, tokenizer):
    p, every = params(on_policy=1, cut_off=False), params(on_policy=1)
    asked = batches(p)(3)
    first = every.written(tiny, asked)
    ends = first["labels"][0][first["labels"][0] >= 0][-1]  # as if this token ended a reply
    asked["stops"] = ends[None]
    kept, whole = p.written(tiny, asked), every.written(tiny, asked)
    stopped = [(row == ends).any().item() for row in whole["labels"]]
    assert stopped[0] and not all(stopped)
    assert [(row >= 0).any().item() for row in kept["labels"]] == stopped and torch.equal(kept["ids"], whole["ids"])
    asked["stops"] = torch.tensor([tokenizer.vocab_size + 1])
    assert (p.written(tiny, asked)["labels"] >= 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_it_is_trls(pair, beta):
    from trl.experimental.gkd import GKDTrainer

    labels = torch.zeros(1, 5, dtype=torch.long)
    expected = GKDTrainer.generalized_jsd_loss(pair[0][None], pair[1][None], labels, beta)
    torch.testing.assert_close(on_policy.divergence(*pair, beta), expected)


def test_zero_at_equality_and_symmetric_at_a_half(pair):
    student, teacher = pair
    for beta in (0.0, 0.3, 1.0):
        assert on_policy.divergence(student, student, beta).item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(on_policy.divergence(student, teacher, 0.5), on_policy.divergence(teacher, student, 0.5))
    assert on_policy.divergence(student, teacher, 0.5) < torch.tensor(2.0).log()
    mirrored = on_policy.divergence(teacher, student, 0.8)
    torch.testing.assert_close(on_policy.divergence(student, teacher, 0.2), mirrored)


def test_batches_are_the_data_or_prompts_in_the_given_share(batches):
    def share(on):
        batch = batches(params(on_policy=on))
        return sum("seed" in batch(i) for i in range(200)) / 200

    assert (share(0), share(1)) == (0, 1) and share(0.3) == pytest.approx(0.3, abs=0.1)


def test_what_the_student_writes_is_learnt_up_to_the_stop_and_nothing_else(batches, tiny, tokenizer):
    p = params(on_policy=1)
    prompts = [chat.prompt_ids(tokenizer, row["prompt"]) for row in ROWS]
    ends = set()
    for index in range(6):
        asked = batches(p)(index)
        asked["stops"] = torch.tensor([tokenizer.encode("e")[0] if index % 2 else tokenizer.eos_token_id])
        with torch.no_grad():
            tiny.lm_head.weight[asked["stops"]] += index * 0.1  # so that it is sometimes drawn
        batch = p.written(tiny, asked)
        for ids, labels, mask, prompt in zip(batch["ids"], batch["labels"], asked["mask"], asked["ids"], strict=True):
            begin, reply = int(mask.sum()), labels[labels >= 0].tolist()
            assert ids[:begin].tolist() == prompt[mask.bool()].tolist() and ids[:begin].tolist() in prompts
            assert (labels[:begin] < 0).all() and ids[begin : begin + len(reply)].tolist() == reply
            stopped = asked["stops"].item() in reply
            assert reply.index(asked["stops"]) == len(reply) - 1 if stopped else len(reply) == p.max_new_tokens
            ends.add(stopped)
    assert ends == {True, False}, "both ends were seen"


def test_samples_are_the_students_whatever_the_padding(batches, tiny, tokenizer):
    """Near temperature 0 each reply is the greedy one to its prompt alone."""
    p = params(on_policy=1, temperature=1e-4)
    batch = p.written(tiny, batches(p)(0))
    for ids, labels in zip(batch["ids"], batch["labels"], strict=True):
        reply = labels[labels >= 0]
        begin = int((labels >= 0).nonzero()[0])
        greedy = tiny.generate(ids[None, :begin], do_sample=False, max_new_tokens=10, eos_token_id=2, pad_token_id=0)
        assert torch.equal(greedy[0, begin:], reply)


def test_the_seed_is_the_steps_and_the_global_generator_is_left_alone(batches, tiny):
    p, before = params(on_policy=1), torch.get_rng_state()
    one, again, other = (p.written(tiny, batches(p)(i)) for i in (0, 0, 1))
    assert torch.equal(one["ids"], again["ids"]) and not torch.equal(one["ids"], other["ids"])
    assert torch.equal(before, torch.get_rng_state())


def test_interrupted_and_resumed_ends_in_the_same_weights(batches, tiny, tokenizer, llama, tmp_path, monkeypatch):
    p = params()
    feed = batches(p)

    def run(folder, stop_after=None):
        student = llama(len(tokenizer), seed=1)

        def batch(index):
            if index == stop_after:
                raise KeyboardInterrupt
            return feed(index)

        loop.fit(student, batch, lambda part: p.loss(student, Teacher(tiny, tokenizer), part), p.training, [], folder)
        return student

    assert {"seed" in feed(i) for i in range(2, 4)} == {True, False}
    whole = run(tmp_path / "whole")
    monkeypatch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)  # a checkpoint every step
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop_after=2)
    assert (tmp_path / "cut" / "state.safetensors").exists()
    resumed = run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_on_the_datas_solutions_it_is_the_divergence_of_their_replies(batches, tiny, tokenizer, llama):
    p, student = params(on_policy=0, beta=0.0), llama(len(tokenizer), seed=1)
    batch = batches(p)(0)
    said, meant = (packed.logits(model, batch)[0].log_softmax(-1) for model in (student, tiny))
    expected = (meant.exp() * (meant - said)).sum(-1).mean()
    torch.testing.assert_close(p.loss(student, Teacher(tiny, tokenizer), batch), expected)


def test_shares_of_a_student_write_nothing():
    shared = {"training": TRAINING | {"batch_size": 4, "devices": 2, "parallel": "fsdp"}}
    with pytest.raises(ValueError, match="no process can write replies with a share of the model"):
        params(on_policy=1, **shared)
    assert params(on_policy=0, temperature=1.0, max_new_tokens=64, **shared)


def test_prompts_without_room_for_a_reply_are_refused(batches):
    with pytest.raises(UserError, match="no prompt leaves 60 tokens for a reply in a context of 64 tokens"):
        batches(params(max_new_tokens=60, context=64))
