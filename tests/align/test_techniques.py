"""What every alignment technique must hold. A new file in stages/align/ is picked up here."""

import copy
from importlib import import_module

import pytest
import torch

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.store import adapters
from stages.lib.text import problems

PAIRS = [
    {"id": str(n), "family": "f", "prompt": f"Say {n}", "chosen": f"#### {n}", "rejected": f"#### {n + 1}"}
    for n in range(8)
]
PROBLEMS = [{"id": pair["id"], "prompt": pair["prompt"], "solution": pair["chosen"]} for pair in PAIRS]


@pytest.fixture(params=params.techniques("align"))
def technique(request):
    return import_module(f"stages.align.{request.param}")


def align(technique, model, tokenizer, folder, adapter=None):
    name = technique.__name__.rsplit(".", 1)[1]
    p = technique.Params(
        method=name, model="a/b", problems="a/b", examples="a/b", context=64, lora=adapter,
        training={"steps": 12, "batch_size": 4, "lr": 5e-3, "warmup": 0},
    )  # fmt: skip
    examples = PAIRS if name == "dpo" else PROBLEMS
    curve: list[dict[str, float]] = []
    wrapped = adapters.wrap(model, adapter)
    technique.align(wrapped, tokenizer, PROBLEMS, examples, p, curve, folder / "checkpoints")
    return adapters.merge(wrapped, adapter), curve


@torch.no_grad()
def log_probability(model, tokenizer, prompt, reply) -> float:
    """Of the reply given the prompt, token by token."""
    ids, begin = problems.chat_ids(tokenizer, prompt, reply), len(problems.prompt_ids(tokenizer, prompt))
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(log_p[t - 1, ids[t]].item() for t in range(begin, len(ids)))


def margin(model, tokenizer):
    """How much likelier the right replies are than the wrong ones."""
    sides = {side: sum(log_probability(model, tokenizer, row["prompt"], row[side]) for row in PAIRS)
             for side in ("chosen", "rejected")}  # fmt: skip
    return sides["chosen"] - sides["rejected"]


def test_it_prefers_the_right_replies_more_than_before(technique, tiny, tokenizer, tmp_path):
    before = margin(tiny, tokenizer)
    model, curve = align(technique, tiny, tokenizer, tmp_path)
    assert margin(model, tokenizer) > before + 1
    assert [row["step"] for row in curve] == list(range(1, 13))


def test_the_same_seed_gives_the_same_weights(technique, tiny, tokenizer, tmp_path):
    one, _ = align(technique, copy.deepcopy(tiny), tokenizer, tmp_path / "1")
    two, _ = align(technique, copy.deepcopy(tiny), tokenizer, tmp_path / "2")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_with_lora_only_low_rank_changes_are_made(technique, tiny, tokenizer, tmp_path):
    before = copy.deepcopy(tiny)
    model, _ = align(technique, tiny, tokenizer, tmp_path, adapters.LoRA(rank=2))
    assert model.state_dict().keys() == before.state_dict().keys()
    for name, weight in before.state_dict().items():
        change = model.state_dict()[name] - weight
        if name.endswith("proj.weight"):
            assert 1 <= torch.linalg.matrix_rank(change, atol=1e-5) <= 2, name
        else:
            assert not change.any(), name


def test_records_of_the_wrong_kind_are_refused(tiny, tokenizer, tmp_path):
    from stages.align import dpo

    p = dpo.Params(method="dpo", model="a/b", problems="a/b", examples="a/b", training={"steps": 1})
    with pytest.raises(UserError, match="preference pairs; chosen, rejected missing"):
        dpo.align(tiny, tokenizer, PROBLEMS, PROBLEMS, p, [], tmp_path)


KEPT, TERNARY = {"keep_zeros": True}, {"fake_quantize": {"weights": "ternary"}}


@pytest.mark.parametrize(
    ("entry", "training", "complaint"),
    [
        ({"method": "dpo"}, KEPT, "trl's trainer moves every weight"),
        ({"method": "sft", "lora": {}}, KEPT, "adapters are added to every weight"),
        ({"method": "dpo"}, TERNARY, "trl's trainer rounds no weights"),
        ({"method": "sft", "lora": {}}, TERNARY, "adapters are added to the rounded weights"),
    ],
)
def test_what_training_could_not_hold_is_not_promised(entry, training, complaint):
    parents = {"model": "a/b", "problems": "a/b", "examples": "a/b"}
    with pytest.raises(UserError, match=f"params.yaml: align.mine.* {complaint}"):
        params.technique("align", "mine", entry | parents | {"training": {"steps": 1} | training})
