"""Which Linears a compression technique may change, and the inputs that calibration rows give them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stages.lib.frame.errors import UserError

See = Callable[[str, Tensor], None]
Observe = Callable[[dict[str, nn.Linear], See], None]


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every Linear by dotted name, but the output head: it is tied to the embedding, or as sensitive as it."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}


def blocks(model: nn.Module) -> list[nn.Module]:
    """The decoder layers in the order of computation; a model without a ModuleList is one block."""
    return next((list(each) for each in model.modules() if isinstance(each, nn.ModuleList)), [model])


@torch.no_grad()
def run(model: nn.Module, rows_NT: Tensor, batch: int = 8) -> None:
    """The rows through the decoder, for what hooks see there. The output head is not computed."""
    body: Any = getattr(model, "base_model", None)
    device = next(model.parameters()).device
    for rows in rows_NT.split(batch):
        body(rows.to(device), use_cache=False) if body else model(rows.to(device))


def observe(model: nn.Module, rows_NT: Tensor, layers: dict[str, nn.Linear], see: See, batch: int = 8) -> None:
    """Run the rows through the model and call see(name, x_MI) for each of `layers` and each batch.

    M = tokens of the batch, I = in_features.
    """
    with watching(layers, see):
        run(model, rows_NT, batch)


@torch.no_grad()
def in_turn(model: nn.Module, rows_NT: Tensor, batch: int = 8) -> Iterator[tuple[nn.Module, Observe]]:
    """Every block with its `observe(layers, see)`, which shows what it reads after those before it were changed.

    What a block hands on is kept for the next one: three passes of the rows, not one for every block.
    """
    states: list[Tensor] = []  # what the present block reads, batch by batch
    arguments: dict[nn.Module, list[dict[str, Any]]] = {block: [] for block in blocks(model)}  # masks, positions

    def keep(block: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        if block is next(iter(arguments)):
            states.append(inputs[0])
        arguments[block].append(named)

    with ExitStack() as hooks:
        for block in arguments:
            hooks.enter_context(block.register_forward_pre_hook(keep, with_kwargs=True))
        run(model, rows_NT, batch)

    for block, named in arguments.items():
        outputs = partial(through, block, states, named)

        def observe_block(layers: dict[str, nn.Linear], see: See, outputs: Callable[[], Any] = outputs) -> None:
            with watching(layers, see):
                outputs()

        yield block, observe_block
        states = outputs()


def through(block: nn.Module, states: list[Tensor], arguments: list[dict[str, Any]]) -> list[Tensor]:
    outputs = [block(state, **named) for state, named in zip(states, arguments, strict=True)]
    return [each[0] if isinstance(each, tuple) else each for each in outputs]


@contextmanager
def watching(layers: dict[str, nn.Linear], see: See) -> Iterator[None]:
    """Calls see(name, x_MI) whenever one of the layers is; not any more afterwards, also after an error."""

    def pass_on(name: str) -> Callable[..., None]:
        return lambda _, inputs: see(name, inputs[0].flatten(0, -2))

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(pass_on(name)))
        yield


def check_widths(layers: Mapping[str, nn.Linear], multiple: int, why: str) -> None:
    """Refuse, before any work, layers whose rows do not divide into groups."""
    for name, layer in layers.items():
        if layer.in_features % multiple:
            raise UserError(f"{name} has {layer.in_features} inputs; {why} needs a multiple of {multiple}")


def require_dense(model: Any, place: str) -> None:
    """Refuse packed integers, which no technique could change: pruning and merging come before quantizing."""
    if getattr(model.config, "quantization_config", None):
        raise UserError(f"{place}: its parent is quantized already; take the parent of that one")
