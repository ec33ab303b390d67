"""Which weights to keep: the best share of every row, or the best n of every m neighbours.

Shapes: O = out_features, I = in_features.
"""

import torch
from torch import Tensor


def keep(score_OI: Tensor, sparsity: float | None, pattern: str | None) -> Tensor:
    """True where the score is among the best of its group; of equal scores the later ones stay.

    The group is the row, of which the share `sparsity` goes; with pattern "2of4" every 4 neighbours, 2 of which stay.
    """
    if pattern is None:
        assert sparsity is not None
        return best(score_OI, score_OI.shape[1] - round(sparsity * score_OI.shape[1]))
    kept, of = sizes(pattern)
    return best(score_OI.unflatten(1, (-1, of)), kept).flatten(1)


def best(score: Tensor, count: int) -> Tensor:
    """True at the `count` largest along the last dimension."""
    order = score.argsort(dim=-1, stable=True)
    dropped = order[..., : score.shape[-1] - count]
    return torch.ones_like(score, dtype=torch.bool).scatter(-1, dropped, False)


def sizes(pattern: str) -> tuple[int, int]:
    kept, of = map(int, pattern.split("of"))
    return kept, of
