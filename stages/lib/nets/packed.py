"""The forward pass over packed rows (stages/lib/text/packing.py): what a model says where a reply token comes next.

Examples of one row are kept apart by their positions. A recurrent state or a convolution knows no bounds, so models
that have one read each example in a row of its own. The routers of a mixture learn from these losses like every other
weight, without a loss that spreads tokens over experts: what is reported is the loss of the words alone. Shapes: N
reply tokens, B rows of a batch, T context, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from stages.lib.nets import attention
from stages.lib.text.packing import IGNORE, Batch, padded


def logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the model says where a reply token comes next, (N, V), and those tokens, (N,); the head skips the rest."""
    output, _, tokens_N = forward(model, batch)
    return output.logits, tokens_N


def forward(model: Any, batch: Batch, **more: Any) -> tuple[Any, Tensor, Tensor]:
    """The model's output, its logits (N, V) alone where a learnt token comes next; where that is, (B, T - 1), and those
    tokens, (N,).

    Of rows that are one text from end to end, which have ids alone, every token is learnt. `more` is the model's.
    """
    if "positions" in batch and not attention.separable(model):
        batch = {name: part for name, part in apart(batch).items() if name != "positions"}
    labels_BT = batch.get("labels", batch["ids"])[:, 1:]
    learnt_BT = labels_BT != IGNORE
    with attention.examples(model, batch.get("positions")) as given, reading(model, learnt_BT):
        output = model(input_ids=batch["ids"], use_cache=False, **given, **more)
    output.logits = output.logits[0]
    return output, learnt_BT, labels_BT[learnt_BT]


@contextmanager
def reading(model: Any, learnt_BT: Tensor) -> Iterator[None]:
    """Within, the head reads the learnt positions alone, as one row of N; what a family does to logits behind its head
    (scales, caps) is the model's own forward, so that no family needs a word here."""

    def select(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0][:, :-1][learnt_BT][None]

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def apart(batch: Batch) -> Batch:
    """The same examples in the same order, one a row."""
    examples = []
    for ids, labels, positions in zip(batch["ids"], batch["labels"], batch["positions"], strict=True):
        begins = (positions == 0).nonzero().flatten().tolist()
        spans = [slice(a, b) for a, b in pairwise([*begins, len(ids)])]
        examples += [(ids[span], labels[span]) for span in spans if (labels[span] != IGNORE).any()]
    return padded(examples)


def loss(model: Any, batch: Batch) -> Tensor:
    """Mean next-token loss over the reply tokens, nats/token."""
    logits_NV, tokens_N = logits(model, batch)
    return F.cross_entropy(logits_NV.float(), tokens_N)
