"""The preference losses are TRL's, in value and gradient, and the paper's, token by token."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from stages.align import Given, dpo
from stages.align import __main__ as stage
from stages.align.parts import pairs
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.store import adapters
from stages.lib.text import chat
from stages.lib.training import loop
from stages.pretrain import state_space

PARENTS = dict.fromkeys(("model", "problems", "examples"), "a/b")
PAIR = {"id": "0", "family": "f", "prompt": "Say 4", "chosen": "#### 4", "rejected": "#### 5"}
PAIRS = [PAIR | {"prompt": f"Say {'so ' * n}{n}", "chosen": "so " * n + f"#### {n}"} for n in range(4)]
LOSSES = {"sigmoid": {}, "robust": {"label_smoothing": 0.2}, "hinge": {}, "ipo": {}, "apo_zero": {}, "sppo_hard": {}}
TRAINING = {"steps": 1, "batch_size": 4, "warmup": 0, "lr_floor": 1, "weight_decay": 0, "precision": "float32"}


def test_unpaired_preferences_are_refused_by_name(tokenizer):
    unpaired = {"id": "mine/0", "family": "f", "prompt": "Say 4", "solution": "#### 4", "liked": True}
    with pytest.raises(UserError, match="'mine/0' and all others are single replies: `method: kto`"):
        make().batches(Given(tokenizer, [], [unpaired], None))


def make(loss="sigmoid", training=TRAINING, **more):
    given = LOSSES[loss] | more
    return dpo.DPO(method="dpo", **PARENTS, preference_loss=loss, training=TRAINING | training, **given)


@torch.no_grad()
def log_probability(model, tokenizer, pair, side):
    ids, begin = (
        chat.chat_ids(tokenizer, pair["prompt"], pair[side]),
        len(chat.prompt_ids(tokenizer, pair["prompt"])),
    )
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]] for t in range(begin, len(ids)))


def margin_by_hand(policy, reference, tokenizer, pair):
    return sum(
        sign * log_probability(model, tokenizer, pair, side)
        for side, s in (("chosen", 1), ("rejected", -1))
        for model, sign in ((policy, s), (reference, -s))
    )


def test_log_probabilities_are_those_of_each_reply_token_by_token(tiny, tokenizer):
    batch = pairs.together(pairs.encode(tokenizer, PAIRS, 256))
    found = zip(pairs.SIDES, pairs.log_probabilities(tiny, batch), pairs.lengths(batch), strict=True)
    for side, total_B, length_B in found:
        expected = torch.stack([log_probability(tiny, tokenizer, pair, side) for pair in PAIRS])
        torch.testing.assert_close(total_B, expected, atol=1e-4, rtol=1e-5)
        prompts = [len(chat.prompt_ids(tokenizer, pair["prompt"])) for pair in PAIRS]
        whole = [len(chat.chat_ids(tokenizer, pair["prompt"], pair[side])) for pair in PAIRS]
        assert length_B.tolist() == [a - b for a, b in zip(whole, prompts, strict=True)]


def test_a_state_space_model_finds_the_same_in_a_batch_as_alone(tokenizer):
    p = state_space.StateSpace(method="state_space", tokens="a/b", hidden=32, layers=2, head_dim=16, state=8, chunk=16)
    model = p.build(tokenizer).eval()
    with torch.no_grad():
        chosen_B, _ = pairs.log_probabilities(model, pairs.together(pairs.encode(tokenizer, PAIRS, 256)))
    expected = torch.stack([log_probability(model, tokenizer, pair, "chosen") for pair in PAIRS])
    torch.testing.assert_close(chosen_B, expected, atol=1e-3, rtol=1e-4)


def test_second_step_has_the_loss_of_the_paper(tiny, tokenizer, tmp_path):
    """At the first step policy and reference are equal, so the loss is log 2; after it, it is the formula's."""

    def run(steps, folder):
        model, curve = copy.deepcopy(tiny), []
        technique = make(training={"steps": steps, "batch_size": 1, "lr": 1e-3})
        batches = technique.batches(Given(tokenizer, [], [PAIR], None))
        reference = stage.unchanged(tiny)
        loop.fit(model, batches, lambda b: technique.loss(model, reference, b), technique.training, curve, folder)
        return model, curve

    after_one, _ = run(1, tmp_path / "1")
    _, curve = run(2, tmp_path / "2")
    margin = margin_by_hand(after_one, tiny, tokenizer, PAIR)
    assert curve[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert curve[1]["loss"] == pytest.approx(-F.logsigmoid(0.1 * margin).item(), abs=1e-3)
    assert curve[1]["margin"] == pytest.approx(margin.item(), abs=1e-3) and curve[1]["accuracy"] == 1
    for side in pairs.SIDES:
        expected = log_probability(after_one, tokenizer, PAIR, side).item()
        assert curve[1][f"{side}_logprob"] == pytest.approx(expected, abs=1e-3)


@pytest.fixture
def trl_loss(tiny, moved, tokenizer, tmp_path):
    """trl_loss(loss, beta, smoothing): TRL's loss of the same pairs and models, and the gradient of the policy."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def conversation(pair):
        replies = {side: [{"role": "assistant", "content": pair[side]}] for side in pairs.SIDES}
        return replies | {"prompt": [{"role": "user", "content": pair["prompt"]}]}

    def compute(loss, beta, smoothing):
        settings = DPOConfig(
            output_dir=str(tmp_path), loss_type=[loss], beta=beta, label_smoothing=smoothing, bf16=False, use_cpu=True,
            per_device_train_batch_size=len(PAIRS), report_to="none", max_length=256, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = DPOTrainer(
            model=moved, ref_model=copy.deepcopy(tiny), args=settings, processing_class=tokenizer,
            train_dataset=Dataset.from_list([conversation(pair) for pair in PAIRS]),
        )  # fmt: skip
        trainer.model.eval()
        batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(PAIRS))])
        value = trainer.compute_loss(trainer.model, batch)
        return value, torch.autograd.grad(value, [w for w in trainer.model.parameters() if w.requires_grad])

    return compute


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_trls(loss, beta, trl_loss, tiny, moved, tokenizer):
    technique = make(loss, beta=beta)
    expected, expected_gradient = trl_loss(loss, beta, technique.label_smoothing)
    value, measures = technique.loss(
        moved, lambda: nullcontext(tiny), technique.batches(Given(tokenizer, [], PAIRS, None))(0)
    )
    gradient = torch.autograd.grad(value, list(moved.parameters()))
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    for found, wanted in zip(gradient, expected_gradient, strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-3)
    assert measures["margin"].abs() > 1e-3, "policy and reference differ"


def test_the_chosen_replies_own_loss_joins_by_its_weight(tiny, moved, tokenizer):
    batch = make().batches(Given(tokenizer, [], PAIRS, None))(0)
    plain, with_sft = (make(sft_weight=w).loss(moved, lambda: nullcontext(tiny), batch)[0] for w in (0.0, 0.5))
    prompts = [len(chat.prompt_ids(tokenizer, pair["prompt"])) for pair in PAIRS]
    whole = [len(chat.chat_ids(tokenizer, pair["prompt"], pair["chosen"])) for pair in PAIRS]
    lengths = [a - b for a, b in zip(whole, prompts, strict=True)]
    own = [-log_probability(moved, tokenizer, pair, "chosen") / n for pair, n in zip(PAIRS, lengths, strict=True)]
    torch.testing.assert_close(with_sft - plain, 0.5 * torch.stack(own).mean(), atol=1e-4, rtol=1e-4)


def test_batches_go_round_the_pairs_in_a_seeded_order(tokenizer):
    def prompts(seed):
        batch = make(training={"batch_size": 3, "seed": seed}).batches(Given(tokenizer, [], PAIRS, None))
        return [tokenizer.decode(ids[:20]) for i in range(4) for ids in batch(i)["ids"][:3]]

    assert prompts(0) == prompts(0) != prompts(1)
    assert prompts(0)[:4] == prompts(0)[4:8] and len(set(prompts(0)[:4])) == 4


def test_the_reference_of_adapters_is_the_model_without_them(tiny, tokenizer, tmp_path):
    """Trained with LoRA, the same loss as with a copy for a reference; and no other weight is in the way."""
    technique, before = make(training={"steps": 3, "lr": 1e-2}, lora={"rank": 2}), copy.deepcopy(tiny)
    curves = []
    for number, copied in enumerate((False, True)):
        torch.manual_seed(0)
        policy, curve = adapters.wrap(copy.deepcopy(tiny), technique.lora), []
        reference = stage.unchanged(before) if copied else stage.adapters_off(policy)
        batches = technique.batches(Given(tokenizer, [], PAIRS, None))
        folder = tmp_path / str(number)
        loop.fit(policy, batches, lambda b, m=policy, r=reference: technique.loss(m, r, b), technique.training,
                 curve, folder)  # fmt: skip
        curves.append(curve)
    assert curves[0] == curves[1] and curves[0][-1]["margin"] > 0


def test_pairs_that_do_not_fit_are_left_out_and_none_is_refused(tokenizer, capsys):
    longest = max(len(chat.chat_ids(tokenizer, pair["prompt"], pair["chosen"])) for pair in PAIRS)
    assert len(pairs.encode(tokenizer, PAIRS, longest)) == len(PAIRS)
    assert len(pairs.encode(tokenizer, PAIRS, longest - 1)) == len(PAIRS) - 1
    assert "1 of 4 pairs are longer" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of 4 pairs fits into a context of 4 tokens"):
        pairs.encode(tokenizer, PAIRS, 4)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"preference_loss": "robust"}, "robust with label_smoothing 0 is the sigmoid loss"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.1, but it counts only with `preference_loss: robust`"),
    ],
)
def test_a_smoothing_that_does_nothing_is_refused(given, complaint):
    with pytest.raises(UserError, match=complaint):
        params.technique("align", "mine", {"method": "dpo", **PARENTS, "training": {"steps": 1}} | given)


def test_margin_and_accuracy_of_held_out_pairs_are_those_by_hand(tiny, moved, tokenizer):
    found = pairs.compare(tiny, moved, pairs.encode(tokenizer, PAIRS, 256), size=3)
    margins = [margin_by_hand(moved, tiny, tokenizer, pair).item() for pair in PAIRS]
    assert found["margin"] == pytest.approx(sum(margins) / 4, abs=1e-4)
    for when, model in (("before", tiny), ("after", moved)):
        chosen, rejected = ([log_probability(model, tokenizer, pair, side).item() for pair in PAIRS]
                            for side in pairs.SIDES)  # fmt: skip
        assert found[f"chosen_logprob_{when}"] == pytest.approx(sum(chosen) / 4, abs=1e-4)
        assert found[f"rejected_logprob_{when}"] == pytest.approx(sum(rejected) / 4, abs=1e-4)
        preferred = sum(a > b for a, b in zip(chosen, rejected, strict=True)) / 4
        assert found[f"preference_accuracy_{when}"] == preferred
