"""What learns from its own replies: TRL's numbers where it has them, the formula reply by reply, and when it stops."""

import copy
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from stages.align import SCAFFOLD, Given
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.text import chat, packing
from stages.lib.training import loop

PARENTS = dict.fromkeys(("model", "problems", "examples"), "a/b")
PROBLEMS = [{"id": str(n), "family": "f", "prompt": f"Say {n}", "solution": f"#### {n}"} for n in range(6)]
TRAINING = {"steps": 4, "batch_size": 12, "lr": 1e-3, "warmup": 0, "precision": "float32"}
REWARDS = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])  # three groups of four


def make(name, training=None, **given):
    kind = params.technique_class("align", name)
    usual = {"group": 4, "max_new_tokens": 5, "context": 48, "forecast": 0, "training": TRAINING | (training or {})}
    return kind.model_validate({"method": name, **PARENTS} | usual | given)


@pytest.fixture
def drawn(tiny, tokenizer):
    """Replies that the reference wrote, some shorter than others, with rewards of ours."""
    batch = make("reinforce").batches(Given(tokenizer, PROBLEMS, [], tiny))(0)
    for row in (0, 5, 9):  # as if they had ended earlier
        last = (batch["labels"][row] != packing.IGNORE).nonzero()[-1 - row % 3 :]
        batch["labels"][row, last] = packing.IGNORE
    stopped = torch.tensor([row % 3 != 0 for row in range(12)])
    return batch | {"reward": REWARDS.clone(), "stopped": stopped}


def said(model, batch, temperature=1.0):
    """Of every reply the log-probabilities of its tokens, row by row, one text at a time."""
    found = []
    for ids, labels in zip(batch["ids"], batch["labels"], strict=True):
        places = (labels != packing.IGNORE).nonzero()[:, 0].tolist()
        log_p = (model(input_ids=ids[None]).logits[0] / temperature).log_softmax(-1)
        found.append(torch.stack([log_p[t - 1, ids[t]] for t in places]))
    return found


def before(batch):
    return [row[labels != packing.IGNORE] for row, labels in zip(batch["drawn"], batch["labels"], strict=True)]


def same_gradient(value, expected, model, exact=True):
    if exact:
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    weights = list(model.parameters())
    for found, wanted in zip(*(torch.autograd.grad(each, weights) for each in (value, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-3)


def trl(p, model, batch):
    """The loss of TRL's GRPOTrainer for the same replies."""
    from trl import GRPOTrainer

    def wide(rows):
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    now, then = wide(said(model, batch)), wide(before(batch))
    mask = wide([torch.ones(len(row)) for row in before(batch)])
    if not p.truncated:
        mask = mask * batch["stopped"][:, None]
    groups = batch["reward"].view(-1, 4)
    ahead = groups - groups.mean(1, keepdim=True)
    advantages = ahead / (groups.std(1, keepdim=True) + 1e-4) if p.scale else ahead
    kind = "cispo" if p.clip == "weight" else {"reply": "grpo", "token": "bnpo", "room": "dr_grpo"}[p.average_over]
    metrics = defaultdict(lambda: defaultdict(list))
    settings = SimpleNamespace(
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=0.0, use_vllm=False,
        importance_sampling_level={"token": "token", "reply": "sequence"}[p.ratio], loss_type=kind,
        epsilon_low=p.clip_low, epsilon_high=p.clip_high + (kind == "cispo"),
        args=SimpleNamespace(delta=None, steps_per_generation=1),
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=5,
        _entropy_bonus_enabled=False, _metrics=metrics,
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        _get_per_token_logps_and_entropies=lambda *_, **__: (now, torch.zeros_like(now), None),
    )  # fmt: skip
    none = torch.zeros(len(now), 0)
    inputs = {"prompt_ids": none, "prompt_mask": none, "completion_ids": now, "completion_mask": mask}
    inputs |= {"advantages": advantages.flatten(), "old_per_token_logps": then, "num_items_in_batch": mask.sum()}
    return GRPOTrainer._compute_loss(settings, model, inputs)


VARIANTS = [
    {},
    {"average_over": "reply"},
    {"average_over": "room"},
    {"scale": False, "average_over": "room"},
    {"ratio": "reply", "average_over": "reply"},
    {"clip_low": 0.01, "clip_high": 0.02},
    {"ratio": "reply", "clip_low": 0.002, "clip_high": 0.003},
    {"clip": "weight", "clip_high": 0.01},
    {"truncated": False},
]


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_grpo_is_trls(given, moved, tiny, tokenizer, drawn):
    p = make("grpo", **given)
    if not p.truncated:  # TRL divides by the tokens that are left, and so do we
        assert p.average_over == "token"
    value, measures = p.loss(moved, lambda: nullcontext(tiny), drawn)
    same_gradient(value, trl(p, moved, drawn), moved)
    assert measures["live"] == 1 and measures["drift"] > 0.01
    if p.clip_high < 0.1:
        assert measures["clipped"] > 0.05


def test_reinforce_is_its_formula_and_trls_gradient(moved, tiny, drawn):
    """Of TRL's RLOO where the weights are those that drew: its ratio is then 1, and its gradient that of log pi."""
    p = make("reinforce")
    value, _ = p.loss(moved, lambda: nullcontext(tiny), drawn)
    rewards, total = REWARDS.view(3, 4), 0.0
    for row, log_p in enumerate(said(moved, drawn)):
        group, place = divmod(row, 4)
        others = [rewards[group, other] for other in range(4) if other != place]
        total = total - (rewards[group, place] - sum(others) / 3) * log_p.sum()
    same_gradient(value, total / 12, moved)


@pytest.mark.parametrize(("trace", "weight", "clip"), [(0.95, 0.5, 0.2), (0.0, 2.0, 0.02), (1.0, 0.1, 0.01)])
def test_ppo_is_its_formula(trace, weight, clip, moved, tiny, drawn):
    """Advantages as sums over what comes, reply by reply and token by token."""
    p = make("ppo", group=1, trace=trace, value_weight=weight, clip=clip)
    head = p.scaffold(moved)
    torch.manual_seed(2)
    torch.nn.init.normal_(head.weight, std=0.2)
    moved.add_module(SCAFFOLD, head)
    value, measures = p.loss(moved, lambda: nullcontext(tiny), drawn)

    ratios, advantages, values = [], [], []
    for row, (log_p, then) in enumerate(zip(said(moved, drawn), before(drawn), strict=True)):
        ids, labels = drawn["ids"][row], drawn["labels"][row]
        places = (labels != packing.IGNORE).nonzero()[:, 0]
        states = moved.model(input_ids=ids[None]).last_hidden_state[0]
        own = states[places - 1] @ head.weight[0] + head.bias[0]
        known = [each.item() for each in own] + [0.0]
        surprises = [
            known[t + 1] - known[t] + (REWARDS[row].item() if t == len(places) - 1 else 0) for t in range(len(places))
        ]
        advantages += [sum(trace**k * each for k, each in enumerate(surprises[t:])) for t in range(len(places))]
        values += list(own)
        ratios += list((log_p - then).exp())
    middle = sum(advantages) / len(advantages)
    deviation = (sum((each - middle) ** 2 for each in advantages) / len(advantages)) ** 0.5
    total = 0.0
    for ratio, advantage, own in zip(ratios, advantages, values, strict=True):
        ahead = (advantage - middle) / deviation
        held = min(max(ratio.item(), 1 - clip), 1 + clip)
        total = total - (ratio * ahead if ratio.item() * ahead <= held * ahead else torch.tensor(held * ahead))
        total = total + weight * (own - (advantage + own.item())) ** 2
    same_gradient(value, total / len(ratios), moved)
    outside = sum(abs(ratio.item() - 1) > clip for ratio in ratios) / len(ratios)
    assert measures["clipped"].item() == pytest.approx(outside) and outside > 0.05


@pytest.mark.parametrize("name", ["grpo", "reinforce"])
def test_the_distance_is_exact_over_the_vocabulary_and_a_group_of_equals_counts_nowhere(name, moved, tiny, drawn):
    plain, _ = make(name).loss(moved, lambda: nullcontext(tiny), drawn)
    far, measures = make(name, kl=2.0, temperature=0.7).loss(moved, lambda: nullcontext(tiny), drawn)
    near, _ = make(name, temperature=0.7).loss(moved, lambda: nullcontext(tiny), drawn)
    kls = []
    for ids, labels in zip(drawn["ids"], drawn["labels"], strict=True):
        places = (labels != packing.IGNORE).nonzero()[:, 0] - 1
        q, p = ((model(input_ids=ids[None]).logits[0, places] / 0.7).log_softmax(-1) for model in (moved, tiny))
        kls.append((q.exp() * (q - p)).sum(-1))
    assert measures["kl"].item() == pytest.approx(torch.cat(kls).mean().item(), rel=1e-4)
    over = torch.cat(kls).mean() if name == "grpo" else torch.stack([row.sum() for row in kls]).mean()
    assert (far - near).item() == pytest.approx(2 * over.item(), rel=1e-4)

    dead = drawn | {"reward": torch.cat([REWARDS[:8], torch.full((4,), 1.0)])}
    less = {key: value[:8] for key, value in drawn.items()}
    for kl in (0.0, 1.0):
        p = make(name, kl=kl)
        (with_dead, told), (without, _) = (p.loss(moved, lambda: nullcontext(tiny), each) for each in (dead, less))
        assert with_dead.item() == pytest.approx(without.item(), rel=1e-4) and told["live"].item() == pytest.approx(
            2 / 3
        )
    nothing, _ = p.loss(moved, lambda: nullcontext(tiny), drawn | {"reward": torch.ones(12)})
    assert nothing.item() == 0 and not any(
        grad.any() for grad in torch.autograd.grad(nothing, list(moved.parameters()))
    )
    assert plain.item() != near.item()


def test_the_distance_by_drawn_tokens_is_k3(moved, tiny, drawn):
    far, measures = make("grpo", kl=2.0, kl_over="drawn").loss(moved, lambda: nullcontext(tiny), drawn)
    near, _ = make("grpo").loss(moved, lambda: nullcontext(tiny), drawn)
    ahead = torch.cat([there - here for here, there in zip(said(moved, drawn), said(tiny, drawn), strict=True)])
    expected = ahead.exp() - ahead - 1
    same_gradient(far - near, 2 * expected.mean(), moved)
    assert measures["kl"].item() == pytest.approx(expected.mean().item(), rel=1e-4) and measures["kl"] > 0
    p, token = make("grpo", kl=1.0, kl_over="drawn"), torch.tensor([0])
    likely, unlikely = torch.tensor([[-0.1, -50.0]]), torch.tensor([[-60.0, -0.1]])
    assert p.distance(unlikely, likely, token).item() == pytest.approx(torch.tensor(10.0).exp().item() - 11)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_replies_are_drawn_with_the_probabilities_that_they_bring_along(temperature, tiny, tokenizer):
    p = make("reinforce", temperature=temperature)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny.train()
    batch, again, other = (p.batches(Given(tokenizer, PROBLEMS, [], tiny))(index) for index in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected) and tiny.training  # others' random numbers and the mode stay
    tiny.eval()
    for own, log_p in zip(before(batch), said(tiny, batch, temperature), strict=True):
        torch.testing.assert_close(own, log_p, atol=1e-5, rtol=1e-5)
    assert torch.equal(batch["ids"], again["ids"]) and batch["ids"].tolist() != other["ids"].tolist()
    prompts = {tuple(chat.prompt_ids(tokenizer, row["prompt"])) for row in PROBLEMS}
    for row in range(0, 12, 4):
        asked = [
            tuple(batch["ids"][row + i][: int((batch["labels"][row + i] == -100).int().argmin())].tolist())
            for i in range(4)
        ]
        assert len(set(asked)) == 1 and asked[0] in prompts  # a group is of one prompt


def train(p, model, tokenizer, folder, stop_after=None, problems=PROBLEMS):
    reference, curve = copy.deepcopy(model), []
    if scaffold := p.scaffold(model):
        model.add_module(SCAFFOLD, scaffold)
    batches = p.batches(Given(tokenizer, problems, [], model))

    def stopping(index):
        if index == stop_after:
            raise KeyboardInterrupt
        return batches(index)

    loop.fit(model, stopping, lambda batch: p.loss(model, lambda: nullcontext(reference), batch), p.training, curve,
             folder, p.watch, p.cycle())  # fmt: skip
    return curve


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_several_steps_on_one_draw_resume_where_the_draw_begins(name, unsure, tokenizer, tmp_path, monkeypatch):
    p = make(name, {"steps": 9}, updates=3, max_new_tokens=8)
    whole, cut = copy.deepcopy(unsure), copy.deepcopy(unsure)
    curve = train(p, whole, tokenizer, tmp_path / "whole")
    assert [row["drift"] > 1e-4 for row in curve] == [False, True, True] * 3  # the weights have moved since the draw
    monkeypatch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)  # a checkpoint as often as may be
    with pytest.raises(KeyboardInterrupt):
        train(p, copy.deepcopy(unsure), tokenizer, tmp_path / "cut", stop_after=5)
    kept = files.read_json(tmp_path / "cut/curve.json")["curve"]
    assert len(kept) == 3  # not four or five
    assert train(p, cut, tokenizer, tmp_path / "cut") == curve
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), cut.parameters(), strict=True))


@pytest.mark.parametrize("name", ["grpo", "ppo", "reinforce"])
def test_it_stops_when_it_goes_too_far_or_learns_nothing_and_keeps_the_weights(name, tiny, unsure, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"stopped after step 2: \S+ nats a token away .* max_kl is 1e-09"):
        far = make(name, kl=0.1, max_kl=1e-9, max_new_tokens=8)
        train(far, copy.deepcopy(unsure), tokenizer, tmp_path / "a")
    with pytest.raises(
        UserError, match=r"stopped after step 2: for 2 steps every reply had the same reward .*\(0.00\)"
    ):
        train(make(name, patience=2), tiny, tokenizer, tmp_path / "b")
    for folder in ("a", "b"):
        assert (tmp_path / folder / "state.safetensors").is_file()
    with pytest.raises(UserError, match="stopped after step 2"):
        train(make(name, patience=2), tiny, tokenizer, tmp_path / "b")


def test_a_hopeless_run_is_refused_before_it_begins(tiny, tokenizer, capsys):
    with pytest.raises(UserError, match=r"of 6 prompts only 0 get replies of different reward \(right: 0%\)"):
        make("grpo", forecast=8).batches(Given(tokenizer, PROBLEMS, [], tiny))
    assert "forecast: f: 0% of 6 prompts teach something; right 0%, one of 4 right 0%" in capsys.readouterr().out
    rows = [row | {"scorer": "pattern", "pattern": "e", "family": f"f{n % 2}"} for n, row in enumerate(PROBLEMS)]
    assert not any(
        make("grpo").batches(Given(tokenizer, rows, [], tiny))(0)["stopped"]
    )  # cut off, so never worth anything
    with pytest.raises(UserError, match="none of 6 prompts fits into a context of 3 tokens"):
        make("grpo", context=16, max_new_tokens=13).batches(Given(tokenizer, PROBLEMS, [], tiny))


def test_parts_are_whole_groups():
    with pytest.raises(ValueError, match="6 replies a part of the batch are no whole groups of 4"):
        make("grpo", {"batch_size": 12, "accumulation": 2})
    with pytest.raises(ValueError, match="no process can write replies with a share of the model"):
        make("grpo", {"batch_size": 16, "devices": 2, "parallel": "fsdp"})
    with pytest.raises(ValueError, match="clip_low is 0.1, but it counts only with `clip: surrogate`"):
        make("grpo", clip="weight", clip_low=0.1)
