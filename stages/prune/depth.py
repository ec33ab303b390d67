"""Depth: drop the blocks that change their input least. Men et al. 2024 (ShortGPT), arXiv:2403.03853, eq. 1.

    BI_i = 1 - E_t [ x_i,t . x_i+1,t / (|x_i,t| |x_i+1,t|) ]

x_i,t is what block i reads at token t. What is left is a whole, smaller model, where a student may begin instead of at
random weights (Sanh et al. 2019, arXiv:1910.01108; Minitron, arXiv:2407.14679). Cost: one forward pass for all depths.
Shapes: N = rows, T = context, D = hidden.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from stages.lib import calibrate
from stages.lib.params import Calibration
from stages.prune import Pruning


class Params(Pruning):
    method: Literal["depth"]
    layers: PositiveInt  # blocks that stay
    calibration: Calibration = Calibration()


def prune(model: Any, scores: dict[str, Tensor], p: Params) -> nn.Module:
    check(model, p)
    decoder, blocks = model.get_decoder(), calibrate.blocks(model)
    kept = scores["influence"].argsort(descending=True, stable=True)[: p.layers].sort().values.tolist()
    stay: list[Any] = [blocks[i] for i in kept]
    for position, block in enumerate(stay):
        block.self_attn.layer_idx = position  # its place in the key-value cache
    decoder.layers = nn.ModuleList(stay)
    model.config.num_hidden_layers = p.layers
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[i] for i in kept]
    return model


def score(model: Any, rows_NT: Tensor, p: Params) -> dict[str, Tensor]:
    check(model, p)
    return {"influence": torch.tensor(block_influence(model, rows_NT), dtype=torch.float64)}


def check(model: Any, p: Params) -> None:
    blocks = calibrate.blocks(model)
    if not all(hasattr(block, "self_attn") for block in blocks):
        raise SystemExit(
            f"{p.model} is a {model.config.model_type}; depth can shorten decoders of attention blocks only"
        )
    if p.layers >= len(blocks):
        raise SystemExit(f"layers is {p.layers}, but {p.model} has no more than {len(blocks)} blocks")


@torch.no_grad()
def block_influence(model: Any, rows_NT: Tensor) -> list[float]:
    """BI of every block, in [0, 2]."""
    states: list[Tensor] = []  # of one batch: what each block reads and, last, what the final norm does; (N, T, D)
    readers = [*calibrate.blocks(model), model.get_decoder().norm]
    hooks = [each.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])) for each in readers]
    sums = [0.0] * (len(readers) - 1)
    try:
        for rows in rows_NT.split(8):
            states.clear()
            model.get_decoder()(rows.to(model.device), use_cache=False)
            for i, (before, after) in enumerate(zip(states, states[1:], strict=False)):
                sums[i] += (1 - F.cosine_similarity(before, after, dim=-1)).mean(1).sum().item()
    finally:
        for hook in hooks:
            hook.remove()
    return [each / len(rows_NT) for each in sums]
