"""The inputs that calibration rows give to matrices, and checks before any work.

Every matrix is shown all that it reads; an expert reads the tokens that are routed to it, and no others.
Shapes: N = rows, T = context, M = tokens of a batch, I = in_features.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.nets.anatomy import Matrix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Matrices = Mapping[str, Matrix] | Mapping[str, nn.Linear]
See = Callable[[str, Tensor], None]
Observe = Callable[[Matrices, See], None]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]  # of a block besides the states: masks, positions


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every Linear by dotted name, but the output head and routers: for formats that pack Linears and nothing else."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    stays = {head, *(router.module for router in anatomy.routers(model).values())}
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and each not in stays}


@torch.no_grad()
def run(model: nn.Module, rows_NT: Tensor, batch: int = 8) -> None:
    """The rows through the decoder, for what hooks see there. The output head is not computed."""
    body: Any = getattr(model, "base_model", None)
    device = next(model.parameters()).device
    for rows in rows_NT.split(batch):
        body(rows.to(device), use_cache=False) if body else model(rows.to(device))


def observe(model: nn.Module, rows_NT: Tensor, matrices: Matrices, see: See, batch: int = 8) -> None:
    """Run the rows through the model and call see(name, x_MI) for each of `matrices` and each batch."""
    with watching(matrices, see):
        run(model, rows_NT, batch)


@torch.no_grad()
def in_turn(model: nn.Module, rows_NT: Tensor, batch: int = 8) -> Iterator[tuple[nn.Module, Observe]]:
    """Every block with its `observe(matrices, see)`, which shows what it reads after those before it were changed.

    What a block hands on is kept for the next one: three passes of the rows, not one for every block.
    """
    states: list[Tensor] = []  # what the present block reads, batch by batch
    arguments: dict[nn.Module, list[Arguments]] = {block: [] for block in anatomy.blocks(model)}
    first = next(iter(arguments))

    def keep(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if block is first:
            states.append(inputs[0])
        arguments[block].append((inputs[1:], named))

    with ExitStack() as hooks:
        for block in arguments:
            hooks.enter_context(block.register_forward_pre_hook(keep, with_kwargs=True))
        run(model, rows_NT, batch)

    for block, others in arguments.items():
        outputs = partial(through, block, states, others)

        def observe_block(matrices: Matrices, see: See, outputs: Callable[[], Any] = outputs) -> None:
            with watching(matrices, see):
                outputs()

        yield block, observe_block
        states = outputs()


def through(block: nn.Module, states: list[Tensor], arguments: list[Arguments]) -> list[Tensor]:
    outputs = [block(state, *more, **named) for state, (more, named) in zip(states, arguments, strict=True)]
    return [output[0] if isinstance(output, tuple) else output for output in outputs]


@contextmanager
def watching(matrices: Matrices, see: See) -> Iterator[None]:
    """Calls see(name, x_MI) whenever one of the matrices multiplies; not any more afterwards, also after an error."""
    experts: dict[nn.Module, dict[tuple[str, int], str]] = defaultdict(dict)  # names by parameter and expert

    def reads(name: str) -> Callable[..., None]:
        return lambda _, inputs: see(name, inputs[0].flatten(0, -2))

    def experts_read(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for parameter, number, x_MI in anatomy.expert_inputs(module, inputs[0].flatten(0, -2), inputs[1]):
            if name := experts[module].get((parameter, number)):
                see(name, x_MI)

    with ExitStack() as hooks:
        for name, matrix in matrices.items():
            if isinstance(matrix, nn.Linear):
                hooks.enter_context(matrix.register_forward_pre_hook(reads(name)))
            elif matrix.expert is None:
                hooks.enter_context(matrix.module.register_forward_pre_hook(reads(name)))
            else:
                experts[matrix.module][matrix.name, matrix.expert] = name
        for module in experts:
            hooks.enter_context(module.register_forward_pre_hook(experts_read))
        yield


class Wide(Protocol):
    @property
    def in_features(self) -> int: ...


def check_widths(matrices: Mapping[str, Wide], multiple: int, why: str, others: Iterable[int] = ()) -> None:
    """Refuse, before any work, matrices whose rows do not divide into groups; `others`: multiples to have instead."""
    for name, matrix in matrices.items():
        if matrix.in_features % multiple:
            fit = [str(each) for each in others if not any(other.in_features % each for other in matrices.values())]
            choice = f": choose {' or '.join(fit)}" if fit else ""
            raise UserError(f"{name} has {matrix.in_features} inputs; {why} needs a multiple of {multiple}{choice}")


def require_dense(model: "PreTrainedModel", place: str) -> None:
    """Refuse packed integers, which no technique could change: pruning and merging come before quantizing."""
    if getattr(model.config, "quantization_config", None):
        raise UserError(f"{place}: its parent is quantized already; take the parent of that one")
