"""Depth: drop the blocks that change their input least. Men et al. 2024 (ShortGPT), arXiv:2403.03853, eq. 1.

    BI_i = 1 - E_t [ x_i,t . x_i+1,t / (|x_i,t| |x_i+1,t|) ]

x_i,t is what block i reads at token t. What is left is a whole, smaller model, where a student may begin instead of at
random weights (Sanh et al. 2019, arXiv:1910.01108; Minitron, arXiv:2407.14679). Or the blocks that are named stay: cut
to a fifth it is no longer the old function, and a student may learn faster from the first blocks than from the most
influential ones. Cost: one forward pass for all depths.
Shapes: N = rows, T = context, D = hidden.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Calibration
from stages.lib.nets import anatomy, calibrate
from stages.prune import Pruning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stages.prune.parts.given import Given


class Depth(Pruning):
    method: Literal["depth"]
    layers: PositiveInt | list[NonNegativeInt]  # blocks that stay: how many, or which, from 0
    calibration: Calibration = Calibration()

    @model_validator(mode="after")
    def named_once(self) -> "Depth":
        if isinstance(self.layers, list):
            if not self.layers or self.layers != sorted(set(self.layers)):
                raise ValueError(f"layers is {self.layers}; it must name blocks in ascending order")
            self.refuse_idle("calibration", "where layers is a number")
        return self

    def prune(self, model: "PreTrainedModel", given: "Given") -> "PreTrainedModel":
        self.check(model)
        if isinstance(self.layers, list):
            kept = self.layers
        else:
            influence = given.once(lambda: self.score(model, given.rows), model.device)["influence"]
            kept = influence.argsort(descending=True, stable=True)[: self.layers].sort().values.tolist()
        self.require_config(model, kept)
        anatomy.shorten(model, kept)
        return model

    def score(self, model: "PreTrainedModel", rows_NT: Tensor) -> dict[str, Tensor]:
        return {"influence": torch.tensor(block_influence(model, rows_NT), dtype=torch.float64)}

    def check(self, model: "PreTrainedModel") -> None:
        """Refuse, before any work, what can't be shortened. The last blocks stand for those that will be kept."""
        blocks = anatomy.blocks(model)
        named = self.layers if isinstance(self.layers, list) else list(range(len(blocks)))[-self.layers :]
        if len(named) == len(blocks) or named[-1] >= len(blocks):
            raise UserError(f"layers is {self.layers}, but {self.model} has no more than {len(blocks)} blocks")
        self.require_config(model, named)

    def require_config(self, model: "PreTrainedModel", kept: list[int]) -> None:
        if obstacle := anatomy.obstacle(model, kept):
            raise self.refusal(model, f"shorten only what a config can describe afterwards, but {obstacle}")


@torch.no_grad()
def block_influence(model: "PreTrainedModel", rows_NT: Tensor) -> list[float]:
    """BI of every block, in [0, 2]."""
    blocks = anatomy.named_blocks(model)
    sums = dict.fromkeys(blocks, 0.0)

    def compares(name: str) -> Callable[..., None]:
        def add(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            after_NTD = output[0] if isinstance(output, tuple) else output
            sums[name] += (1 - F.cosine_similarity(inputs[0], after_NTD, dim=-1)).mean(1).sum().item()

        return add

    with ExitStack() as hooks:
        for name, block in blocks.items():
            hooks.enter_context(block.register_forward_hook(compares(name)))
        calibrate.run(model, rows_NT)
    return [total / len(rows_NT) for total in sums.values()]
