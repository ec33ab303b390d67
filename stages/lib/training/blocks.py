"""How the blocks of a network compute while it is trained: their activations kept or computed again, as kernels or not.

What is not trained, such as replies that are drawn, goes through them as ever.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stages.lib.nets import anatomy, attention
from stages.lib.training.config import Training


@contextmanager
def computing(model: nn.Module, p: Training) -> Iterator[None]:
    """Within, as `p` asks. Of activations only what a block reads is kept, and the rest computed again when it is
    needed: Chen et al. 2016, arXiv:1604.06174."""
    blocks = anatomy.blocks(model) if p.compile or p.checkpoint_activations else []
    for block in blocks:
        plain = trained = block.forward
        if p.compile:
            trained = torch.compile(trained)
        if p.checkpoint_activations:
            trained = partial(checkpoint, trained, use_reentrant=False, context_fn=partial(again, model))
        block.forward = partial(either, trained, plain)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def either(trained: Callable[..., Any], plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return (trained if torch.is_grad_enabled() else plain)(*args, **kwargs)


def again(model: Any) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """A forward pass, and the same one again, when the attention it went by is no longer set."""
    config = getattr(model, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    return nullcontext(), attention.attending(model, implementation) if implementation else nullcontext()
