"""What every alignment technique must hold. A new file in stages/align/ is picked up here."""

import copy

import pytest
import torch

from stages.align import SCAFFOLD, Given
from stages.align import __main__ as stage
from stages.align.parts import online
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.nets import calibrate, rounding
from stages.lib.store import adapters
from stages.lib.text import chat
from stages.lib.training import loop

PAIRS = [
    {"id": str(n), "family": "f", "prompt": f"Say {n}", "chosen": f"#### {n}", "rejected": f"#### {n + 1}"}
    for n in range(8)
]
PROBLEMS = [{"id": pair["id"], "prompt": pair["prompt"], "solution": pair["chosen"]} for pair in PAIRS]
STEPPED = [
    {"id": f"{pair['id']}{side}", "prompt": pair["prompt"], "solution": pair[side], "steps": [float(side == "chosen")]}
    for pair in PAIRS
    for side in ("chosen", "rejected")
]
EXAMPLES = {"sft": PROBLEMS, "process_reward": STEPPED}  # others learn from pairs


SCORERS = ("reward", "process_reward")
LONGER = {"process_reward": {"steps": 80, "batch_size": 16}}  # it knows nothing of pairs
ONLINE = ("grpo", "ppo", "reinforce")
DRAWN = {"group": 4, "max_new_tokens": 8, "forecast": 0}  # of what learns from its own replies
PARENTS = {"model": "a/b", "problems": "a/b", "examples": "a/b"}
TRAINING = {"steps": 12, "batch_size": 4, "lr": 5e-3, "warmup": 0}


@pytest.fixture(params=params.techniques("align"))
def name(request):
    return request.param


def make(name, training=None, **more):
    kind = params.technique_class("align", name)
    if issubclass(kind, online.Online):
        more = DRAWN | more
        training = {"batch_size": 16, "lr": 2e-3} | (training or {})
    return kind(method=name, **PARENTS, context=64, training=TRAINING | (training or {}), **more)


def align(technique, model, tokenizer, folder, stop_after=None):
    """As the stage does it."""
    examples = EXAMPLES.get(technique.method, PAIRS)
    reference, curve = stage.unchanged(copy.deepcopy(model)), []
    policy = adapters.wrap(model, technique.lora)
    if technique.lora:
        reference = stage.adapters_off(policy)
    scaffold = technique.scaffold(policy)
    if scaffold:
        policy.add_module(SCAFFOLD, scaffold)
    batches = technique.batches(Given(tokenizer, PROBLEMS, examples, policy))

    def stopping(index):
        if index == stop_after:
            raise KeyboardInterrupt
        return batches(index)

    loop.fit(policy, stopping, lambda batch: technique.loss(policy, reference, batch), technique.training, curve,
             folder / "checkpoints", technique.watch, technique.cycle())  # fmt: skip
    if scaffold:
        delattr(policy, SCAFFOLD)
    return adapters.merge(policy, technique.lora), curve


@pytest.fixture
def tiny(name, tiny, unsure):
    return copy.deepcopy(unsure) if name in ONLINE else tiny


@torch.no_grad()
def log_probability(model, tokenizer, prompt, reply) -> float:
    """Of the reply given the prompt, token by token."""
    ids, begin = chat.chat_ids(tokenizer, prompt, reply), len(chat.prompt_ids(tokenizer, prompt))
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]].item() for t in range(begin, len(ids)))


def margin(model, tokenizer):
    """How much likelier the right replies are than the wrong ones."""
    sides = {side: sum(log_probability(model, tokenizer, row["prompt"], row[side]) for row in PAIRS)
             for side in ("chosen", "rejected")}  # fmt: skip
    return sides["chosen"] - sides["rejected"]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@torch.no_grad()
def score(model, tokenizer, prompt, reply) -> float:
    """A reward model's, of one text: the logit of its last token behind it."""
    ids = chat.chat_ids(tokenizer, prompt, reply)
    return model(input_ids=torch.tensor([ids])).logits[0, -1, ids[-1]].item()


def score_margin(model, tokenizer):
    by_pair = [[score(model, tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in PAIRS]
    return sum(chosen - rejected for chosen, rejected in by_pair)


def test_it_prefers_the_right_replies_more_than_before(name, tiny, tokenizer, tmp_path):
    prefers = score_margin if name in SCORERS else margin
    before = prefers(tiny, tokenizer)
    technique = make(name, LONGER.get(name))
    model, curve = align(technique, tiny, tokenizer, tmp_path)
    assert prefers(model, tokenizer) > before + 1
    assert [row["step"] for row in curve] == list(range(1, technique.training.steps + 1))


def test_the_same_seed_gives_the_same_weights(name, tiny, tokenizer, tmp_path):
    one, _ = align(make(name), copy.deepcopy(tiny), tokenizer, tmp_path / "1")
    two, _ = align(make(name), copy.deepcopy(tiny), tokenizer, tmp_path / "2")
    assert same(one, two)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.1}, {"rank": 2, "nf4": True}], ids=str)
def test_interrupted_and_resumed_ends_in_the_same_weights_and_curve(name, lora, tiny, tokenizer, tmp_path, monkeypatch):
    technique = make(name, {"steps": 6}, lora=lora)
    torch.manual_seed(0)
    whole, curve = align(technique, copy.deepcopy(tiny), tokenizer, tmp_path / "whole")
    monkeypatch.setattr(loop, "monotonic", iter(range(0, 10**9, 2000)).__next__)  # a checkpoint every step
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        align(technique, copy.deepcopy(tiny), tokenizer, tmp_path / "cut", stop_after=4)
    assert (tmp_path / "cut" / "checkpoints" / "state.safetensors").exists()
    torch.manual_seed(0)
    resumed, curve_resumed = align(technique, copy.deepcopy(tiny), tokenizer, tmp_path / "cut")
    assert same(whole, resumed) and curve == curve_resumed


def test_with_lora_only_low_rank_changes_are_made(name, tiny, tokenizer, tmp_path):
    before = copy.deepcopy(tiny)
    model, _ = align(make(name, lora={"rank": 2}), tiny, tokenizer, tmp_path)
    assert model.state_dict().keys() == before.state_dict().keys()
    for name, weight in before.state_dict().items():
        change = model.state_dict()[name] - weight
        if name.endswith("proj.weight"):
            assert 1 <= torch.linalg.matrix_rank(change, atol=1e-5) <= 2, name
        else:
            assert not change.any(), name


def test_zeros_are_kept_and_rounded_weights_are_ternary(name, tiny, tokenizer, tmp_path):
    for layer in calibrate.linears(tiny).values():
        layer.weight.data[:, ::2] = 0
    sparse, _ = align(make(name, {"keep_zeros": True}), copy.deepcopy(tiny), tokenizer, tmp_path / "1")
    for layer in calibrate.linears(sparse).values():
        assert not layer.weight[:, ::2].any() and (layer.weight[:, 1::2] != 0).float().mean() > 0.99
    rounded, _ = align(make(name, {"fake_quantize": {"weights": "ternary"}}), tiny, tokenizer, tmp_path / "2")
    rounding.require_ternary(rounded, "align.mine")


def test_records_of_the_wrong_kind_are_refused(name, tokenizer):
    if name not in ("sft", *ONLINE):  # which learn from solutions, and from none
        with pytest.raises(UserError, match="the examples must (be .*preference pairs|say of every step)"):
            make(name).batches(Given(tokenizer, PROBLEMS, PROBLEMS, None))


KEPT, TERNARY = {"keep_zeros": True}, {"fake_quantize": {"weights": "ternary"}}


@pytest.mark.parametrize(
    ("entry", "training", "complaint"),
    [
        ({"method": "dpo", "lora": {}}, KEPT, "adapters are added to every weight"),
        ({"method": "sft", "lora": {}}, KEPT, "adapters are added to every weight"),
        ({"method": "dpo", "lora": {}}, TERNARY, "adapters are added to the rounded weights"),
        ({"method": "sft", "lora": {}}, TERNARY, "adapters are added to the rounded weights"),
        ({"method": "sft"}, {"decay": 0.5}, "decay is 0.5, but it counts only with `schedule: wsd`"),
        ({"method": "sft"}, {"batch_size": 4, "accumulation": 3}, "batch_size 4 can't be worked off in 3 equal parts"),
    ],
)
def test_what_training_could_not_hold_is_not_promised(entry, training, complaint):
    with pytest.raises(UserError, match=f"params.yaml: align.mine.* {complaint}"):
        params.technique("align", "mine", entry | PARENTS | {"training": {"steps": 1} | training})
