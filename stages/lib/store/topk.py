"""The k likeliest tokens of a position in few bytes: which they are, in tiers of rank, and what a token of each weighs.

A position is a code of fixed length, so that any row can be read where it lies:

which   k token numbers, ascending, in Elias-Fano code (1974, doi:10.1145/321812.321820): the low l bits of each, and
        what is above them in unary, k l + k + ceil(V / 2^l) bits, l = log2(V / k)
order   tiers of 1, 1, 2, 4, ... k/2 tokens: a bit for each of k, is it of the likelier half? for each of those again...
weight  how much less a token of each tier weighs than the first (mean of the tier; last, of all V - k others), in nats:
        float16 for the last, 8 bits a tier for the share of it

A tier keeps its mass; all others share what is left. With the token itself k = 64 takes 118 bytes of V = 49152, 74 of
V = 1024. Numpy, all positions at once. N positions, K tokens, G tiers with the rest, V vocabulary, W bits or bytes.
"""

from math import ceil, log2

import numpy as np

NAME = "elias-fano-tiers"
LEAST = 1e-6  # probability of everything else: float32 can't tell less from nothing


def sizes(k: int) -> list[int]:
    """Tokens of each tier: those of rank 0, 1, 2-3, 4-7, ..."""
    edges = [0, *(1 << i for i in range((k - 1).bit_length())), k]
    return np.diff(edges).tolist()


def parts(k: int, vocab: int) -> tuple[int, int, list[int]]:
    """(low bits of a token number, bits of the unary part, bits for each halving)."""
    low = max(0, int(log2(vocab / k)))
    return low, k + ceil(vocab / 2**low), np.cumsum(sizes(k))[:0:-1].tolist()


def encode(index_NK: np.ndarray, logprob_NK: np.ndarray, vocab: int) -> np.ndarray:
    """uint8 (N, W) of the k likeliest tokens, the likeliest first, and their log-probabilities over the vocabulary."""
    k = index_NK.shape[1]
    rank_NK = index_NK.argsort(-1)
    tier_NK = np.repeat(np.arange(len(sizes(k))), sizes(k))[rank_NK]
    bits = [*which(np.take_along_axis(index_NK, rank_NK, -1), vocab), *order(tier_NK, k)]
    packed = [np.packbits(each.astype(bool), axis=-1) for each in (bits[0], bits[1], np.hstack(bits[2:]))]
    return np.hstack([*packed, weights(logprob_NK.astype(np.float64), vocab)])


def which(index_NK: np.ndarray, vocab: int) -> list[np.ndarray]:
    """The low bits, and the unary part: a one for each token, after as many zeros as its high part says."""
    n, k = index_NK.shape
    low, unary, _ = parts(k, vocab)
    above_NW = np.zeros((n, unary), bool)
    np.put_along_axis(above_NW, (index_NK >> low) + np.arange(k), True, -1)
    return [(index_NK[..., None] >> np.arange(low) & 1).reshape(n, -1), above_NW]


def order(tier_NK: np.ndarray, k: int) -> list[np.ndarray]:
    """For each tier from the last: of the tokens in it or before it, which are before it?"""
    return [(tier_NK[tier_NK <= t] < t).reshape(len(tier_NK), -1) for t in range(len(sizes(k)) - 1, 0, -1)]


def weights(logprob_NK: np.ndarray, vocab: int) -> np.ndarray:
    """float16 and one byte for each tier but the first."""
    k = logprob_NK.shape[1]
    p_NK = np.exp(logprob_NK)
    starts = np.cumsum([0, *sizes(k)[:-1]])
    rest_N1 = np.maximum(1 - p_NK.sum(-1, keepdims=True), LEAST) / (vocab - k)
    mean_NG = np.hstack([np.add.reduceat(p_NK, starts, axis=-1) / sizes(k), rest_N1])
    below_NG = np.log(mean_NG[:, :1]) - np.log(np.maximum(mean_NG[:, 1:], 1e-300))
    span_N1 = below_NG[:, -1:].astype("<f2")
    share_NG = np.clip(below_NG[:, :-1] / np.maximum(span_N1, 1e-4, dtype=np.float64), 0, 1)
    return np.hstack([span_N1.view(np.uint8), np.round(share_NG * 255).astype(np.uint8)])


def decode(code_NW: np.ndarray, k: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """(token numbers, ascending, int64 (N, K); log-probabilities float32 (N, K))."""
    low, unary, halvings = parts(k, vocab)
    ends = np.cumsum([ceil(bits / 8) for bits in (k * low, unary, sum(halvings))])
    low_NW, above_NW, order_NW, weight_NW = np.split(code_NW, ends, axis=1)
    above_NK = np.nonzero(unpack(above_NW, unary))[1].reshape(len(code_NW), k) - np.arange(k)
    low_NK = unpack(low_NW, k * low).reshape(len(code_NW), k, low) @ (1 << np.arange(low))
    tier_NK = tiers(unpack(order_NW, sum(halvings)), halvings, k)
    return (above_NK << low) + low_NK, np.take_along_axis(logprobs(weight_NW, k, vocab), tier_NK, -1)


def unpack(bytes_NW: np.ndarray, bits: int) -> np.ndarray:
    return np.unpackbits(np.ascontiguousarray(bytes_NW), axis=-1, count=bits)


def tiers(bits_NW: np.ndarray, halvings: list[int], k: int) -> np.ndarray:
    """Everything is in the last tier until a bit moves it up."""
    tier_NK = np.full((len(bits_NW), k), len(halvings))
    for t, bits in zip(range(len(halvings), 0, -1), np.split(bits_NW, np.cumsum(halvings)[:-1], axis=1), strict=True):
        tier_NK[tier_NK == t] -= bits.ravel()
    return tier_NK


def logprobs(weight_NW: np.ndarray, k: int, vocab: int) -> np.ndarray:
    """Of a token in each tier, (N, G), float32; all of the vocabulary sums to one."""
    span_N1 = np.ascontiguousarray(weight_NW[:, :2]).view("<f2").astype(np.float32)
    first_N1 = np.zeros_like(span_N1)
    below_NG = np.hstack([first_N1, weight_NW[:, 2:] * span_N1 / 255, span_N1])
    total_N1 = (np.exp(-below_NG) * [*sizes(k), vocab - k]).sum(-1, keepdims=True)
    return (-below_NG - np.log(total_N1)).astype(np.float32)
