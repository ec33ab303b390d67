"""Which form each matrix is stored in, so that a size is met at the least measured loss. The idea of EXL2 (Turboderp
2023, github.com/turboderp-org/exllamav2); the problem as in Dong et al. 2019 (HAWQ-V2), arXiv:1911.03852.

    minimise sum_l KL_l(f_l)  so that  sum_l size_l(f_l) <= budget

KL_l(f) is measured: model || model with matrix l alone in form f, nats/token; that the matrices' losses add up is the
assumption. The choice is a knapsack, solved exactly but for the rounding of sizes to STEPS parts of the budget.
Cost: matrices x forms passes of the rows. L = matrices, F = forms, R = units of the budget.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

STEPS = 100_000


@torch.no_grad()
def sensitivities(
    model: nn.Module,
    rows_NT: Tensor,
    weights: Mapping[str, Tensor],
    forms: Callable[[str, Tensor], Iterable[Tensor]],
) -> list[list[float]]:
    """KL_l(f), nats/token, of every parameter in each of `forms(name, weight)`. The model is as before at the end."""
    reference = [log_probs(model, ids_BT) for ids_BT in rows_NT.split(8)]
    losses_LF = []
    for name, weight in weights.items():
        dense = weight.clone()
        losses_LF.append([])
        for form in forms(name, dense):
            weight.copy_(form)
            pairs = [(before, log_probs(model, ids)) for before, ids in zip(reference, rows_NT.split(8), strict=True)]
            kls = [(before.exp() * (before - after)).sum(-1).flatten() for before, after in pairs]
            losses_LF[-1].append(torch.cat(kls).mean().item())
        weight.copy_(dense)
    return losses_LF


def log_probs(model: nn.Module, ids_BT: Tensor) -> Tensor:
    return model(ids_BT.to(next(model.parameters()).device)).logits.float().log_softmax(-1)


def choose(costs_LF: list[list[int]], losses_LF: list[list[float]], budget: int) -> list[int]:
    """Which form of every matrix has the least total loss at a total cost within the budget: dynamic programming."""
    unit = max(1, budget // STEPS)
    room = budget // unit
    least_R = torch.zeros(room + 1, dtype=torch.float64)  # loss of the matrices so far within r units
    picks_LR, units_LF = [], [[-(-cost // unit) for cost in costs] for costs in costs_LF]
    for units, losses in zip(units_LF, losses_LF, strict=True):
        options_FR = torch.full((len(units), room + 1), torch.inf, dtype=torch.float64)
        for option_R, taken, loss in zip(options_FR, units, losses, strict=True):
            if taken <= room:
                option_R[taken:] = least_R[: room + 1 - taken] + loss
        least_R, pick_R = options_FR.min(0)
        picks_LR.append(pick_R)
    chosen, left = [], room
    for pick_R, units in zip(reversed(picks_LR), reversed(units_LF), strict=True):
        chosen.append(int(pick_R[left]))
        left -= units[chosen[-1]]
    return chosen[::-1]
