"""Depth: drop the blocks that change their input least. Men et al. 2024 (ShortGPT), arXiv:2403.03853, eq. 1.

    BI_i = 1 - E_t [ x_i,t . x_i+1,t / (|x_i,t| |x_i+1,t|) ]

x_i,t is what block i reads at token t. What is left is a whole, smaller model, where a student may begin instead of at
random weights (Sanh et al. 2019, arXiv:1910.01108; Minitron, arXiv:2407.14679). Cost: one forward pass for all depths.
Shapes: N = rows, T = context, D = hidden.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import calibrate
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
        raise UserError(
            f"{p.model} is a {model.config.model_type}; depth can shorten decoders of attention blocks only"
        )
    if p.layers >= len(blocks):
        raise UserError(f"layers is {p.layers}, but {p.model} has no more than {len(blocks)} blocks")


@torch.no_grad()
def block_influence(model: Any, rows_NT: Tensor) -> list[float]:
    """BI of every block, in [0, 2]."""
    readers = [*calibrate.blocks(model), model.get_decoder().norm]  # what one reads is what the one before it wrote
    sums, before = [0.0] * (len(readers) - 1), torch.empty(0)

    def reads(number: int) -> Callable[..., None]:
        def see(_: Any, inputs: Any) -> None:
            nonlocal before
            if number:
                sums[number - 1] += (1 - F.cosine_similarity(before, inputs[0], dim=-1)).mean(1).sum().item()
            before = inputs[0]

        return see

    with ExitStack() as hooks:
        for number, reader in enumerate(readers):
            hooks.enter_context(reader.register_forward_pre_hook(reads(number)))
        calibrate.run(model, rows_NT)
    return [each / len(rows_NT) for each in sums]
