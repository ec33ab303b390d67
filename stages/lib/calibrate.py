"""Which Linears a compression technique may change, and the inputs that calibration rows give them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every Linear by dotted name, but the output head: it is tied to the embedding, or as sensitive as it."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}


def blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder layers in the order of computation; a model without a ModuleList is one block."""
    return next((list(each) for each in model.modules() if isinstance(each, nn.ModuleList)), [model])


@torch.no_grad()
def observe(
    model: nn.Module, rows_NT: Tensor, layers: dict[str, nn.Linear], see: Callable[[str, Tensor], None], batch: int = 8
) -> None:
    """Run the rows through the model and call see(name, x_MI) for each of `layers` and each batch.

    M = tokens of the batch, I = in_features. The output head is not computed.
    """

    def pass_on(name: str) -> Callable[..., None]:
        return lambda _, inputs: see(name, inputs[0].flatten(0, -2))

    hooks = [layer.register_forward_pre_hook(pass_on(name)) for name, layer in layers.items()]
    body: Any = getattr(model, "base_model", model)
    device = next(model.parameters()).device
    try:
        for rows in rows_NT.split(batch):
            body(rows.to(device))
    finally:
        for hook in hooks:
            hook.remove()


def check_widths(layers: Mapping[str, nn.Linear], multiple: int, why: str) -> None:
    """Refuse, before any work, layers whose rows do not divide into groups."""
    for name, layer in layers.items():
        if layer.in_features % multiple:
            raise SystemExit(f"{name} has {layer.in_features} inputs; {why} needs a multiple of {multiple}")


def require_dense(model: Any, place: str) -> None:
    """Refuse packed integers, which no technique could change: pruning and merging come before quantizing."""
    if getattr(model.config, "quantization_config", None):
        raise SystemExit(f"{place}: its parent is quantized already; take the parent of that one")
