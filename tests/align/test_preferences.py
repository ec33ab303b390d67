"""SimPO, ORPO and KTO: TRL's numbers where it has them, and the papers', reply by reply."""

import copy
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from stages.align import Given, orpo
from stages.align.parts import verdicts
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.text import chat

PARENTS = dict.fromkeys(("model", "problems", "examples"), "a/b")
PAIRS = [
    {"id": str(n), "prompt": f"Say {'so ' * n}{n}", "chosen": "so " * n + f"#### {n}", "rejected": f"#### {n + 1}"}
    for n in range(4)
]
VERDICTS = [
    {"id": str(n), "prompt": f"Say {'so ' * n}{n}", "solution": "so " * (n % 3) + f"#### {n}", "liked": n % 3 != 1}
    for n in range(5)
]
TRAINING = {"steps": 1, "batch_size": 4, "precision": "float32"}


def make(name, **given):
    kind = params.technique_class("align", name)
    return kind.model_validate({"method": name, **PARENTS, "training": TRAINING} | given)


def spoken(model, tokenizer, prompt, reply):
    """Log-probability of a reply and its tokens."""
    ids, begin = chat.chat_ids(tokenizer, prompt, reply), len(chat.prompt_ids(tokenizer, prompt))
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]] for t in range(begin, len(ids))), len(ids) - begin


def sides(model, tokenizer):
    """Mean log-probability a token of every chosen and every rejected reply."""
    for side in ("chosen", "rejected"):
        told = [spoken(model, tokenizer, pair["prompt"], pair[side]) for pair in PAIRS]
        yield torch.stack([total / length for total, length in told])


def same_gradient(value, expected, model):
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    weights = list(model.parameters())
    for found, wanted in zip(*(torch.autograd.grad(each, weights) for each in (value, expected)), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (10.0, 0.0), (2.5, 3.0)])
def test_simpo_is_trls(beta, gamma, moved, tiny, tokenizer):
    from trl.experimental.cpo import CPOTrainer

    technique = make("simpo", beta=beta, gamma=gamma)
    batch = technique.batches(Given(tokenizer, [], PAIRS, None))(0)
    value, measures = technique.loss(moved, lambda: nullcontext(tiny), batch)
    settings = SimpleNamespace(
        alpha=0.0, loss_type="simpo", simpo_gamma=gamma, beta=beta, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    losses_B, *_ = CPOTrainer.cpo_loss(settings, *sides(moved, tokenizer))
    same_gradient(value, losses_B.mean(), moved)
    chosen_B, rejected_B = sides(moved, tokenizer)
    assert measures["margin"].item() == pytest.approx((chosen_B - rejected_B).mean().item(), abs=1e-5)


@pytest.mark.parametrize("weight", [0.1, 2.0])
def test_orpo_is_trls_and_the_chosen_replies_own_loss(weight, moved, tiny, tokenizer):
    from trl.experimental.orpo import ORPOTrainer

    technique = make("orpo", weight=weight)
    value, measures = technique.loss(
        moved, lambda: nullcontext(tiny), technique.batches(Given(tokenizer, [], PAIRS, None))(0)
    )
    chosen_B, rejected_B = sides(moved, tokenizer)
    settings = SimpleNamespace(beta=weight, accelerator=SimpleNamespace(device="cpu"))
    losses_B, _, _, _, margin = ORPOTrainer.odds_ratio_loss(settings, chosen_B, rejected_B)
    same_gradient(value, -chosen_B.mean() - losses_B.mean(), moved)
    assert measures["margin"].item() == pytest.approx(margin.item(), abs=1e-4)


def test_log_odds_hold_at_both_ends():
    for p in (0.5, 0.9, 1e-6):
        assert orpo.log_odds(torch.tensor(math.log(p), dtype=torch.float64)).item() == pytest.approx(
            math.log(p / (1 - p))
        )
    ends = torch.tensor([0.0, -1e-9, -200.0], requires_grad=True)
    orpo.log_odds(ends).sum().backward()
    assert ends.grad.isfinite().all()


def by_hand(technique, policy, reference, tokenizer, rows):
    """Equation 8, a reply at a time; the drift from every prompt with the reply of the one before it."""

    def ratio(row, reply):
        with torch.no_grad():
            before, _ = spoken(reference, tokenizer, row["prompt"], reply)
        return spoken(policy, tokenizer, row["prompt"], reply)[0] - before

    foreign = [ratio(row, rows[n - 1]["solution"]).item() for n, row in enumerate(rows)]
    drift = max(0.0, sum(foreign) / len(rows))
    total = torch.zeros(())
    for row in rows:
        r = ratio(row, row["solution"])
        if row["liked"]:
            total = total + technique.desirable * (1 - (technique.beta * (r - drift)).sigmoid())
        else:
            total = total + technique.undesirable * (1 - (technique.beta * (drift - r)).sigmoid())
    return total / len(rows), drift


@pytest.mark.parametrize(
    "given", [{}, {"beta": 1.0, "desirable": 2.0, "undesirable": 0.5}, {"training": TRAINING | {"seed": 3}}]
)
def test_kto_is_its_formula_reply_by_reply(given, moved, tiny, tokenizer):
    technique = make("kto", **given)
    batch = technique.batches(Given(tokenizer, [], VERDICTS, None))(0)
    rows = in_order(batch, tokenizer)
    value, measures = technique.loss(moved, lambda: nullcontext(tiny), batch)
    expected, drift = by_hand(technique, moved, tiny, tokenizer, rows)
    same_gradient(value, expected, moved)
    assert measures["drift"].item() == pytest.approx(drift, abs=1e-4)
    back, drift = by_hand(technique, tiny, moved, tokenizer, rows)  # the other way round the drift has the other sign
    value, measures = technique.loss(tiny, lambda: nullcontext(moved), batch)
    same_gradient(value, back, tiny)
    assert measures["drift"].item() == pytest.approx(drift, abs=1e-4)


def in_order(batch, tokenizer):
    """The rows that a batch holds, as it holds them."""
    known = [(chat.prompt_ids(tokenizer, row["prompt"]), row) for row in VERDICTS]
    replies = batch["ids"][: len(batch["liked"])].tolist()
    return [next(row for ids, row in known if own[: len(ids)] == ids) for own in replies]


@pytest.mark.parametrize("swapped", [False, True])
def test_kto_is_trls(swapped, moved, tiny, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    policy, reference = (tiny, moved) if swapped else (moved, tiny)
    technique = make("kto", beta=0.3, desirable=1.5, undesirable=0.7)
    batch = technique.batches(Given(tokenizer, [], VERDICTS, None))(0)
    rows = in_order(batch, tokenizer)
    said = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "completion": [{"role": "assistant", "content": row["solution"]}],
            "label": row["liked"],
        }
        for row in rows
    ]
    settings = KTOConfig(
        output_dir=str(tmp_path), beta=0.3, desirable_weight=1.5, undesirable_weight=0.7, bf16=False, use_cpu=True,
        per_device_train_batch_size=len(rows), report_to="none", max_length=256, gradient_checkpointing=False,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = KTOTrainer(
        model=policy, ref_model=copy.deepcopy(reference), args=settings, processing_class=tokenizer,
        train_dataset=Dataset.from_list(said),
    )  # fmt: skip
    trainer.model.eval()
    expected = trainer.compute_loss(
        trainer.model, trainer.data_collator([trainer.train_dataset[n] for n in range(len(rows))])
    )
    value, _ = technique.loss(policy, lambda: nullcontext(reference), batch)
    same_gradient(value, expected, policy)


def test_pairs_count_as_one_reply_of_each(tokenizer):
    known = verdicts.encode(tokenizer, PAIRS, 256)
    assert [each.liked for each in known] == [True, False] * 4
    assert tokenizer.decode(known[1].reply).startswith("#### 1") and known[0].prompt == known[1].prompt


@pytest.mark.parametrize(("share", "liked"), [(1.0, 10), (0.5, 5), (0.1, 1), (0.01, 1)])
def test_kto_leaves_liked_replies_out_as_it_is_told(share, liked, tokenizer):
    rows = [{"id": str(n), "prompt": f"Say {n}", "solution": f"{n}", "liked": n < 10} for n in range(14)]
    training = {"steps": 1, "batch_size": liked + 4}
    entry = {"method": "kto", **PARENTS, "context": 64, "liked_share": share, "training": training}
    batches = params.technique("align", "mine", entry).batches(Given(tokenizer, [], rows, None))
    assert (batches(0)["liked"].sum(), len(batches(0)["liked"])) == (liked, liked + 4)
    once = {ids.numpy().tobytes() for ids in batches(0)["ids"][: liked + 4]}
    assert len(once) == liked + 4 and once == {ids.numpy().tobytes() for ids in batches(1)["ids"][: liked + 4]}


def test_what_kto_cannot_learn_from_is_refused(tokenizer, capsys):
    with pytest.raises(UserError, match="replies that were liked or not, or preference pairs; 'x' is none"):
        verdicts.encode(tokenizer, [{"id": "x", "prompt": "Say 4", "solution": "4"}], 64)
    with pytest.raises(UserError, match="none of 5 replies fits into a context of 4 tokens"):
        verdicts.encode(tokenizer, VERDICTS, 4)
    technique = params.technique("align", "mine", {"method": "kto", **PARENTS, "context": 64, "training": {"steps": 1}})
    with pytest.raises(UserError, match="1 reply fits into a context of 64 tokens"):
        technique.batches(Given(tokenizer, [], VERDICTS[:1], None))
    with pytest.raises(UserError, match="a part of 1 reply has no other prompt"):
        params.technique("align", "mine", {"method": "kto", **PARENTS, "training": {"steps": 1, "batch_size": 1}})
    longest = max(len(each.prompt) + len(each.reply) for each in verdicts.encode(tokenizer, VERDICTS, 256))
    assert len(verdicts.encode(tokenizer, VERDICTS, longest - 1)) < 5
    assert "of 5 replies are longer" in capsys.readouterr().out


def test_held_out_replies_are_measured_by_hand(tiny, moved, tokenizer):
    found = verdicts.compare(tiny, moved, verdicts.encode(tokenizer, VERDICTS, 256), size=2)
    for when, model in (("before", tiny), ("after", moved)):
        for name, liked in (("liked", True), ("disliked", False)):
            told = [
                spoken(model, tokenizer, row["prompt"], row["solution"])[0].item()
                for row in VERDICTS
                if row["liked"] == liked
            ]
            assert found[f"{name}_logprob_{when}"] == pytest.approx(sum(told) / len(told), abs=1e-4)
    only = verdicts.compare(tiny, moved, verdicts.encode(tokenizer, VERDICTS[:1], 256))
    assert set(only) == {"liked_logprob_before", "liked_logprob_after"}
