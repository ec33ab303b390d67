"""Losses against transformers' own and against each other."""

import math

import pytest
import torch

from stages.lib.nets import losses


@pytest.fixture
def batch(tiny):
    ids = torch.randint(tiny.config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))
    return ids, ids.masked_fill(torch.arange(20) % 5 != 0, losses.IGNORE)


def test_next_token_is_transformers_loss(tiny, batch):
    ids, labels = batch
    out = tiny(input_ids=ids, labels=labels)
    torch.testing.assert_close(losses.next_token(out.logits, labels), out.loss)


def test_comparison_by_hand():
    """Two models that say the same everywhere; the logits of the second are 7 too high."""
    p_V, q_V = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).log()

    def p(ids):
        return p_V.expand(*ids.shape, -1)

    def q(ids):
        return q_V.expand(*ids.shape, -1) + 7

    rows = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 2], [2, 2, 2, 2]])
    seen = losses.compare(p, q, rows)
    assert seen["kl"] == pytest.approx(0.25 * math.log(2))
    assert seen["same_top"] == 0
    assert seen["loss_before"] == pytest.approx((math.log(2) + 8 * math.log(4)) / 9)  # of 9 next tokens one is 0
    assert seen["loss_after"] == pytest.approx((2 * math.log(2) + 7 * math.log(4)) / 9)  # and two are 1
    itself = losses.compare(p, p, rows)
    assert (itself["kl"], itself["same_top"]) == (0, 1)


def test_acceptance_is_one_minus_the_total_variation(tiny, llama, tokenizer, rows):
    """arXiv:2211.17192, corollary 3.6, in loops over positions."""
    other = llama(len(tokenizer), seed=1)
    with torch.no_grad():
        pairs = zip(*(model(rows[:3]).logits.softmax(-1).flatten(0, 1) for model in (tiny, other)), strict=True)
        expected = [1 - 0.5 * (p - q).abs().sum().item() for p, q in pairs]
    assert losses.acceptance(tiny, other, rows[:3]) == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    assert losses.acceptance(tiny, tiny, rows) == pytest.approx(1)
