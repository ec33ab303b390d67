"""The code of recorded distributions: a row worked by hand, the bounds that its docstring states, what it loses."""

import numpy as np
import pytest
import torch

from stages.lib.store import topk


def test_one_position_by_hand():
    """16 tokens; 9, 2, 14, 5 with .5, .25, .1, .05, so .1 / 12 for each other; tiers 9 | 2 | 5 14."""
    code = topk.encode(np.array([[9, 2, 14, 5]]), np.log([[0.5, 0.25, 0.1, 0.05]]), vocab=16)
    low = 0b01_10_10_01  # of 2, 5, 9, 14 the two lowest bits, the lower first
    unary = 0b10101010  # high parts 0 1 2 3
    order = 0b1010_01_00  # of 2 5 9 14 those above the last tier; of 2 9 the one above the next
    span = np.array([np.log(60)], "<f2").view(np.uint8).tolist()  # .5 to .1 / 12
    assert code.tolist() == [[low, unary, order, *span, 43, 118]]  # 255 log(2) / log(60), 255 log(.5 / .075) / log(60)
    index, logprob = topk.decode(code, 4, 16)
    assert index.tolist() == [[2, 5, 9, 14]]
    np.testing.assert_allclose(np.exp(logprob), [[0.25, 0.075, 0.5, 0.075]], rtol=0.01)


def distributions(kind: str, vocab: int, n: int = 64) -> torch.Tensor:
    torch.manual_seed(0)
    if kind == "peaked":  # one token has all but a thousandth
        return (torch.randn(n, vocab) + 18 * torch.nn.functional.one_hot(torch.randperm(vocab)[:n], vocab)).log_softmax(
            -1
        )
    if kind == "random":
        return (3 * torch.randn(n, vocab)).log_softmax(-1)
    ranks = torch.stack([torch.randperm(vocab) for _ in range(n)]) + 1.0
    return (-1.3 * ranks.log()).log_softmax(-1)  # Zipf


@pytest.mark.parametrize("k", [2, 3, 12, 16, 64])
@pytest.mark.parametrize("vocab", [65, 1024, 5000])
@pytest.mark.parametrize("kind", ["random", "zipf", "peaked"])
def test_token_numbers_come_back_and_weights_within_half_a_step(kind, vocab, k):
    p_NV = distributions(kind, vocab)
    logprob, rank_NK = p_NV.topk(k)
    index, decoded = topk.decode(topk.encode(rank_NK.numpy(), logprob.numpy(), vocab), k, vocab)
    np.testing.assert_array_equal(index, rank_NK.sort(-1).values)
    total = np.exp(decoded).sum(-1)
    assert (total < 1 + 1e-6).all()
    for row in range(0, len(p_NV), 16):
        p = p_NV[row].double().exp().numpy()
        rest = max(1 - p[rank_NK[row]].sum(), topk.LEAST) / (vocab - k)
        step = np.log(p.max() / rest) / 255
        first = 0
        for size in topk.sizes(k):
            mean = p[rank_NK[row, first : first + size]].mean()
            for token in rank_NK[row, first : first + size].tolist():
                said = decoded[row, index[row].tolist().index(token)]
                assert abs(said - np.log(mean)) <= step + 0.01 or mean < topk.LEAST
            first += size


@pytest.mark.parametrize(("vocab", "expected"), [(1024, 72), (32000, 112), (49152, 116)])
def test_length_at_64(vocab, expected):
    logprob, index = distributions("random", vocab, 4).topk(64)
    code = topk.encode(index.numpy(), logprob.numpy(), vocab)
    assert code.shape == (4, expected) and code.dtype == np.uint8


@pytest.mark.parametrize(("kind", "bound"), [("random", 0.02), ("zipf", 0.015), ("peaked", 1e-5)])
@pytest.mark.parametrize("vocab", [1024, 49152])
def test_what_the_code_loses_is_a_hundredth_of_a_nat(kind, bound, vocab):
    """KL over the 64 and one bucket, by numpy from the whole distributions."""
    p_NV = distributions(kind, vocab).double()
    logprob, index = p_NV.float().topk(64)
    index, decoded = topk.decode(topk.encode(index.numpy(), logprob.numpy(), vocab), 64, vocab)
    p = p_NV.gather(-1, torch.from_numpy(index)).exp().numpy()
    p, q = (np.hstack([each, 1 - each.sum(-1, keepdims=True)]) for each in (p, np.exp(decoded.astype(np.float64))))
    kl = (p * np.log(p / q)).sum(-1).mean()
    assert 0 <= kl < bound


def test_equal_weights_are_exact():
    """All tokens alike: the code must not divide by its span of zero."""
    logprob = np.full((2, 8), -np.log(512))
    _, decoded = topk.decode(topk.encode(np.tile(np.arange(8), (2, 1)), logprob, 512), 8, 512)
    np.testing.assert_allclose(decoded, logprob, atol=1e-3)
