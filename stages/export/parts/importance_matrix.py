"""llama.cpp's importance matrix: how much each input of a Linear weighs in its output. Kawrakow 2024,
github.com/ggml-org/llama.cpp/pull/4861.

Rounding w_oi to q_oi changes an output by sum_i (w_oi - q_oi) x_i; with inputs taken as uncorrelated its mean square is
sum_i (w_oi - q_oi)^2 mean(x_i^2), so mean(x_i^2) is the weight that the quantizer gives column i. I = in_features.
"""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.lib.nets import calibrate


def measure(model: Any, rows_NT: Tensor) -> dict[str, Tensor]:
    """mean(x_i^2) over all calibration tokens, (I,) for every Linear but the head."""
    layers = calibrate.linears(model)
    squares_I = {name: torch.zeros(layer.in_features, dtype=torch.float64) for name, layer in layers.items()}

    def add(name: str, x_MI: Tensor) -> None:
        squares_I[name] += x_MI.double().square().sum(0).cpu()

    calibrate.observe(model, rows_NT, layers, add)
    return {name: square_I / rows_NT.numel() for name, square_I in squares_I.items()}


def save(means_I: Mapping[str, Tensor], rename: Callable[[str], str], target: Path) -> None:
    """llama.cpp's own file (.dat): a count, then name, calls, width and 32-bit floats of every matrix."""
    with target.open("wb") as file:
        file.write(struct.pack("<i", len(means_I)))
        for name, mean_I in means_I.items():
            tensor = rename(f"{name}.weight").encode()
            file.write(struct.pack("<i", len(tensor)) + tensor + struct.pack("<ii", 1, len(mean_I)))
            file.write(mean_I.float().numpy().tobytes())
