"""llama.cpp's importance matrix: how much each input of a matrix weighs in its output. Kawrakow 2024,
github.com/ggml-org/llama.cpp/pull/4861.

Rounding w_oi to q_oi changes an output by sum_i (w_oi - q_oi) x_i; with inputs taken as uncorrelated its mean square is
sum_i (w_oi - q_oi)^2 mean(x_i^2), so mean(x_i^2) is the weight that the quantizer gives column i. I = in_features.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.lib.nets import anatomy, calibrate
from stages.lib.nets.anatomy import Matrix

EXPERTS = {"gate_up_proj": ("gate", "up"), "up_proj": ("up",), "down_proj": ("down",)}  # fused -> llama.cpp's names


def measure(model: Any, rows_NT: Tensor, names: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
    """mean(x_i^2) for every matrix in the blocks as llama.cpp calls it: (I,), or (E, I) of experts.

    `names` says what became of each weight of transformers. An expert counts the tokens that it read; one that read
    none has ones.
    """
    matrices = anatomy.matrices(model)
    squares_I = {name: torch.zeros(each.in_features, dtype=torch.float64) for name, each in matrices.items()}
    counts = dict.fromkeys(matrices, 0)

    def add(name: str, x_MI: Tensor) -> None:
        squares_I[name] += x_MI.double().square().sum(0).cpu()
        counts[name] += len(x_MI)

    calibrate.observe(model, rows_NT, matrices, add)
    found: dict[str, np.ndarray] = {}
    for name, matrix in matrices.items():
        mean_I = (squares_I[name] / counts[name] if counts[name] else torch.ones(matrix.in_features)).float().numpy()
        if matrix.expert is None:
            found |= dict.fromkeys(names.get(f"{name}.weight", ()), mean_I)
        else:
            for tensor in experts(name, matrix):
                count = matrix.parameter.shape[0]
                found.setdefault(tensor, np.empty((count, matrix.in_features), np.float32))[matrix.expert] = mean_I
    return found


def experts(name: str, matrix: Matrix) -> list[str]:
    """What llama.cpp calls the tensors that hold one of transformers' fused experts."""
    block = next(part for part in name.split(".") if part.isdecimal())
    return [f"blk.{block}.ffn_{part}_exps.weight" for part in EXPERTS[matrix.name]]
