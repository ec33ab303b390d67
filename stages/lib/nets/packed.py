"""The forward pass over packed rows (stages/lib/text/packing.py): what a model says where a reply token comes next.

Examples of one row are kept apart by their positions. A recurrent state or a convolution knows no bounds, so models
that have one read each example in a row of its own. Shapes: N reply tokens, B rows of a batch, T context, V vocabulary.
"""

from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from stages.lib.nets import attention
from stages.lib.nets.anatomy import recurrent
from stages.lib.text.packing import IGNORE, Batch, padded


def logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the model says where a reply token comes next, (N, V), and those tokens, (N,); the head skips the rest."""
    output, learnt_BT, tokens_N = forward(model, batch)
    return model.get_output_embeddings()(output.last_hidden_state[:, :-1][learnt_BT]), tokens_N


def forward(model: Any, batch: Batch, **more: Any) -> tuple[Any, Tensor, Tensor]:
    """The decoder's output, where in it a learnt token comes next, (B, T - 1), and those tokens, (N,).

    Of rows that are one text from end to end, which have ids alone, every token is learnt. `more` is the decoder's.
    """
    if "positions" in batch and recurrent(model):
        batch = {name: part for name, part in apart(batch).items() if name != "positions"}
    labels_BT = batch.get("labels", batch["ids"])[:, 1:]
    learnt_BT = labels_BT != IGNORE
    with attention.examples(model, batch.get("positions")) as given:
        output = model.get_decoder()(input_ids=batch["ids"], use_cache=False, **given, **more)
    return output, learnt_BT, labels_BT[learnt_BT]


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
