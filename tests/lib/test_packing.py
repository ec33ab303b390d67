"""Packed rows against the same examples one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.text import chat, packing
from stages.tokenize import unigram

ROWS = [{"id": str(n), "prompt": f"Say {n}", "solution": f"#### {n}" * (1 + n % 3)} for n in range(60)]


def test_every_example_is_there_once_and_whole(tokenizer):
    packed = packing.pack(tokenizer, ROWS, 48, seed=0)
    seen = []
    for ids, positions in zip(packed["ids"], packed["positions"], strict=True):
        begins = [*np.flatnonzero(positions == 0), len(ids)]
        seen += [tuple(ids[a:b].tolist()) for a, b in zip(begins, begins[1:], strict=False)]
    padding = (tokenizer.pad_token_id,)
    expected = [tuple(chat.chat_ids(tokenizer, row["prompt"], row["solution"])) for row in ROWS]
    assert sorted(each for each in seen if each != padding) == sorted(expected)
    assert seen.count(padding) < 0.1 * packed["ids"].size


def test_replies_are_learnt_and_nothing_else(tokenizer):
    packed = packing.pack(tokenizer, ROWS, 48, seed=0)
    learnt = packed["labels"][packed["labels"] >= 0]
    expected = [i for row in ROWS for i in [*tokenizer.encode(row["solution"]), tokenizer.eos_token_id]]
    assert sorted(learnt) == sorted(expected)
    assert (packed["ids"][packed["labels"] >= 0] == learnt).all()


def test_no_example_sees_another(tiny, tokenizer):
    """The loss over packed rows is that over the examples alone, by transformers' own loss."""
    batch = packing.batches(tokenizer, ROWS, 48, size=8, seed=0)(0)
    alone, tokens = 0.0, 0
    for ids, labels, positions in zip(*batch.values(), strict=True):
        begins = [*torch.nonzero(positions == 0).flatten().tolist(), len(ids)]
        for a, b in zip(begins, begins[1:], strict=False):
            if number := int((labels[a + 1 : b] >= 0).sum()):
                alone += tiny(input_ids=ids[None, a:b], labels=labels[None, a:b]).loss.item() * number
                tokens += number
    assert packed.loss(tiny, batch).item() == pytest.approx(alone / tokens, rel=1e-4)
    logits, chosen = packed.logits(tiny, batch)
    assert len(logits) == len(chosen) == tokens
    assert F.cross_entropy(logits, chosen).item() == pytest.approx(alone / tokens, rel=1e-4)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_rows_are_those_of_the_slow_way(kind, tokenizer, texts):
    """Prompt and chat tokenized one after the other, every row summed anew for every example."""
    if kind == "unigram":
        parents = {"documents": "data/corpus", "problems": "data/problems"}
        tokenizer = unigram.Unigram(method="unigram", vocab_size=512, **parents).train(texts)
    rows = [
        {"id": str(n), "prompt": f"Say {text[:n]}", "solution": f"{text[n : 3 * n]} é 3\n#### {n}"}
        for n, text in enumerate(texts * 3)
    ]
    expected = [chat.chat_ids(tokenizer, row["prompt"], row["solution"]) for row in rows]
    begins = [len(chat.prompt_ids(tokenizer, row["prompt"])) for row in rows]
    coded = [packing.encode(tokenizer, row) for row in rows]
    assert [ids for ids, _, _ in coded] == expected
    assert [labels.count(-100) for _, labels, _ in coded] == begins

    def length(row):
        return sum(len(ids) for ids, _, _ in row)

    done, open_rows = [], []
    for example in coded:
        if room := [row for row in open_rows if length(row) + len(example[0]) <= 256]:
            max(room, key=length).append(example)
            continue
        if len(open_rows) == packing.OPEN:
            done.append(max(open_rows, key=length))
            open_rows = [row for row in open_rows if row is not done[-1]]
        open_rows.append([example])
    assert packing.fit(coded, 256) == done + open_rows and done


def test_batches_go_round(tokenizer):
    packed = packing.pack(tokenizer, ROWS, 48, seed=0)["ids"]
    batch = packing.batches(tokenizer, ROWS, 48, size=len(packed) - 1, seed=0)
    assert batch(1)["ids"].tolist() == [packed[-1].tolist(), *packed[:-2].tolist()]


def test_texts_beside_replies_are_learnt_whole_and_go_round(tiny, tokenizer):
    replied = packing.batches(tokenizer, ROWS, 48, size=3, seed=0)
    texts = np.arange(5 * 48, dtype=np.uint16).reshape(5, 48)
    both = packing.beside(replied, texts, 2)
    for index, expected in enumerate([[0, 1], [2, 3], [4, 0]]):
        text = {name: part[3:] for name, part in both(index).items()}
        assert text["ids"].tolist() == text["labels"].tolist() == texts[expected].tolist()
        assert all(torch.equal(part[:3], replied(index)[name]) for name, part in both(index).items())
        assert packed.loss(tiny, text).item() == pytest.approx(
            tiny(input_ids=text["ids"], labels=text["ids"]).loss.item(), rel=1e-4
        )
    with pytest.raises(UserError, match="context is 48, but text_rows come in rows of 47 tokens"):
        packing.beside(replied, texts[:, 1:], 2)
    with pytest.raises(UserError, match="text_rows wants batches of packed replies"):
        packing.beside(lambda i: {"ids": torch.zeros(2, 48), "seed": torch.tensor(i)}, texts, 2)


def test_what_does_not_fit_is_left_out_and_said(tokenizer, capsys):
    long = {"id": "long", "prompt": "Say it", "solution": "a long story " * 30}
    sizes = [packing.pack(tokenizer, examples, 48, 0)["ids"].size for examples in (ROWS, [*ROWS, long])]
    assert sizes[0] == sizes[1]
    assert "1 of 61 examples are longer than 48 tokens" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of 1 examples fits into a context of 48 tokens"):
        packing.pack(tokenizer, [long], 48, 0)


@pytest.fixture(params=["mamba2", "lfm2", "bamba", "qwen3"])
def other(request, tokenizer):
    """Two layers of another architecture: a state, a convolution beside attention, a state beside attention, norms."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": len(tokenizer)} | {
        "initializer_range": 0.3
    }
    shape["initializer_range"] = 0.3  # large, so that what is seen shows
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    mamba = {"n_heads": 4, "d_head": 16, "n_groups": 1, "d_state": 8, "expand": 2, "chunk_size": 16}
    given = {
        "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 16},
        "lfm2": heads | {"layer_types": ["conv", "full_attention"]},
        "bamba": heads | {f"mamba_{name}": value for name, value in mamba.items()} | {"attn_layer_indices": [1]},
        "qwen3": heads | {"head_dim": 8},
    }[request.param]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **shape | given)).eval()


def test_no_example_sees_another_in_any_architecture(other, tokenizer):
    """By their logits one by one; what recurs would see through the mask."""
    batch = packing.batches(tokenizer, ROWS[:6], 48, size=2, seed=0)(0)
    alone = []
    for ids, labels, positions in zip(*batch.values(), strict=True):
        begins = [*torch.nonzero(positions == 0).flatten().tolist(), len(ids)]
        for a, b in zip(begins, begins[1:], strict=False):
            alone.append(other(input_ids=ids[None, a:b]).logits[0, :-1][labels[a + 1 : b] >= 0])
    logits, tokens = packed.logits(other, batch)
    torch.testing.assert_close(logits, torch.cat(alone), atol=1e-4, rtol=1e-4)
    assert torch.equal(tokens, batch["labels"][batch["labels"] >= 0])


def test_apart_there_is_one_example_a_row_in_the_same_order(tokenizer):
    batch = packing.batches(tokenizer, ROWS, 48, size=8, seed=0)(0)
    apart = packed.apart(batch)
    assert torch.equal(apart["labels"][apart["labels"] >= 0], batch["labels"][batch["labels"] >= 0])
    assert ((apart["ids"] == tokenizer.bos_token_id).sum(1) == 1).all() and (apart["positions"] == 0).sum(1).max() == 1
    again = packed.apart(apart)
    assert all(torch.equal(apart[name], again[name]) for name in ("labels", "positions"))
