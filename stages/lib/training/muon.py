"""Muon: momentum whose matrices are made orthogonal, so that every direction moves alike. Jordan et al. 2024,
kellerjordan.github.io/posts/muon; scaled to AdamW's root mean square: Liu et al. 2025, arXiv:2502.16982, eq. 4.

torch.optim.Muon does the same, but always in bfloat16. Processors that can't multiply it, most laptops', took ten times
as long for that as for all the rest of a step.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stages.lib.training import distributed

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # a, b, c: steepest at 0, and all singular values end between 0.7 and 1.2
STEPS = 5
TINY = 1e-7


class Muon(torch.optim.Optimizer):
    """For matrices alone; their singular values are evened out in `dtype`."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    ahead = nesterov(weight.grad, self.state[weight])
                    self.move(weight, ahead, group["lr"], group["weight_decay"])

    def move(self, weight: Tensor, ahead: Tensor, lr: float, weight_decay: float) -> None:
        weight.mul_(1 - lr * weight_decay)
        direction = distributed.of_whole(partial(orthogonal, dtype=self.dtype), ahead)
        weight.add_(direction, alpha=-0.2 * max(weight.shape) ** 0.5 * lr)


def nesterov(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """The gradient and what is left of those before it."""
    if not state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V of its singular value decomposition U S V, by a Newton-Schulz iteration: X <- a X + (b G + c G G) X
    with G = X X^T."""
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(dtype)
    x = x / x.norm().clamp(min=TINY)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).to(matrix.dtype)
