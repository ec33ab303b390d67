"""Attention by examples against each example alone and against transformers' own mask; the layout by hand."""

import pytest
import torch
from torch import Tensor, nn

from stages.lib.nets import attention

LENGTHS = [[5, 1, 1], [7], [2, 4, 1]]  # rows of 7; what is alone is padding


def positions() -> Tensor:
    return torch.tensor([[i for length in row for i in range(length)] for row in LENGTHS])


def test_layout_by_hand():
    groups, back_N = attention.layout(positions())
    assert [group.tolist() for group in groups] == [
        [[14, 15]],
        [[16, 17, 18, 19]],
        [[0, 1, 2, 3, 4, 4, 4], [7, 8, 9, 10, 11, 12, 13]],
    ]
    assert back_N.tolist() == [6, 7, 8, 9, 10, 0, 0, *range(13, 20), 0, 1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("autocast", [False, True])
def test_every_example_is_attended_alone(autocast):
    """By the formula, example by example; two heads of queries to one of keys and values."""
    torch.manual_seed(0)
    module = nn.Module()
    module.num_key_value_groups = 2
    query, key, value = (torch.randn(3, heads, 7, 8) for heads in (4, 2, 2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        given = {"scaling": 0.3, "dropout": 0.0, "layout": attention.layout(positions())}
        out, _ = attention.attention(module, query, key, value, None, **given)
    assert out.shape == (3, 7, 4, 8) and out.dtype == torch.float32
    for b, lengths in enumerate(LENGTHS):
        begins = torch.tensor([0, *lengths]).cumsum(0).tolist()
        for begin, length in zip(begins, lengths, strict=False):
            for t in range(begin, begin + length) if length > 1 else ():
                for head in range(4):
                    seen = slice(begin, t + 1)
                    weights = (key[b, head // 2, seen] @ query[b, head, t] * 0.3).softmax(0)
                    torch.testing.assert_close(out[b, t, head], weights @ value[b, head // 2, seen])


def test_gradients_are_those_of_the_mask(tiny):
    """transformers' own block-diagonal mask, from the same positions; padding is not learnt."""
    ids, learnt = torch.arange(21).reshape(3, 7), positions().ne(0)

    def gradients(**given):
        tiny.zero_grad()
        logits = tiny(input_ids=ids, **given, use_cache=False).logits
        logits.log_softmax(-1)[learnt].square().mean().backward()
        return [w.grad.clone() for w in tiny.parameters()]

    masked = gradients(position_ids=positions())
    with attention.examples(tiny, positions()) as given:
        assert tiny.config._attn_implementation == attention.NAME
        apart = gradients(**given)
    assert tiny.config._attn_implementation == "sdpa"
    for one, other in zip(masked, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_layers_that_look_less_far_get_masks(tokenizer):
    """By hand: a token of its own example, no later, at most four back."""
    from transformers import MistralConfig, MistralForCausalLM

    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = MistralForCausalLM(MistralConfig(vocab_size=64, intermediate_size=32, sliding_window=4, **shape))
    with attention.examples(model, positions()) as given:
        assert given.keys() == {"position_ids", "attention_mask"} and model.config._attn_implementation == "sdpa"
    mask_BTT = given["attention_mask"][:, 0]
    for b, lengths in enumerate(LENGTHS):
        example = [n for n, length in enumerate(lengths) for _ in range(length)]
        for t in range(7):
            seen = [key for key in range(7) if example[key] == example[t] and 0 <= t - key < 4]
            assert mask_BTT[b, t].nonzero().flatten().tolist() == seen
