"""Depth by the formula in loops, and on a model where one block visibly does nothing."""

import copy

import pytest
import torch

from stages.lib.frame.errors import UserError
from stages.lib.store import models
from stages.prune import depth

P = {"method": "depth", "model": "pretrain/base", "tokens": "tokenize/bpe"}


def test_influence_is_one_minus_the_mean_cosine(tiny, rows):
    seen = tiny(rows, output_hidden_states=True).hidden_states[:2]  # what the first block reads and writes
    cosines = [
        torch.dot(x, y) / (x.norm() * y.norm())
        for before, after in zip(*seen, strict=True)
        for x, y in zip(before, after, strict=True)
    ]
    assert depth.block_influence(tiny, rows)[0] == pytest.approx(1 - torch.stack(cosines).mean().item(), abs=1e-5)


@pytest.mark.parametrize("idle", [0, 1])
def test_a_block_that_does_nothing_goes(tiny, rows, given, idle):
    block = tiny.model.layers[idle]
    for layer in (block.self_attn.o_proj, block.mlp.down_proj):
        layer.weight.data.zero_()
    before = copy.deepcopy(tiny)
    pruned = depth.Depth(**P, layers=1).prune(tiny, given(rows))
    assert depth.block_influence(before, rows)[idle] == pytest.approx(0, abs=1e-6)
    assert pruned.config.num_hidden_layers == len(pruned.model.layers) == 1
    torch.testing.assert_close(pruned(rows).logits, before(rows).logits)


def test_layer_types_follow(given, rows, tokenizer, tmp_path):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    pruned = depth.Depth(**P, layers=2).prune(Qwen3ForCausalLM(config).eval(), given(rows))
    models.save(pruned, tokenizer, tmp_path / "model")
    assert torch.equal(models.load(tmp_path / "model")(rows).logits, pruned(rows).logits)


def test_as_many_blocks_as_there_are_is_refused(tiny, rows, given):
    with pytest.raises(UserError, match="layers is 2, but pretrain/base has no more than 2 blocks"):
        depth.Depth(**P, layers=2).prune(tiny, given(rows))


def test_named_blocks_stay(tiny, rows, given):
    """Whatever their influence; the other one does nothing any more."""
    for kept in (0, 1):
        whole = copy.deepcopy(tiny)
        pruned = depth.Depth(**P, layers=[kept]).prune(copy.deepcopy(tiny), given(rows))
        gone = whole.model.layers[1 - kept]
        for layer in (gone.self_attn.o_proj, gone.mlp.down_proj):
            layer.weight.data.zero_()
        torch.testing.assert_close(pruned(rows[:2]).logits, whole(rows[:2]).logits)


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [([1, 0], "it must name blocks in ascending order"), ([], "it must name blocks"), ([0, 0], "it must name blocks")],
)
def test_blocks_are_named_in_order(layers, complaint):
    with pytest.raises(ValueError, match=complaint):
        depth.Depth(**P, layers=layers)


def test_a_block_that_is_not_there_and_rows_that_nobody_looks_at_are_refused(tiny, rows, given):
    with pytest.raises(UserError, match=r"layers is \[2\], but pretrain/base has no more than 2 blocks"):
        depth.Depth(**P, layers=[2]).prune(tiny, given(rows))
    with pytest.raises(ValueError, match="calibration is .* counts only where layers is a number"):
        depth.Depth(**P, layers=[0], calibration={"rows": 3})
