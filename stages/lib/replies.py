"""Supervised rows: prompts and replies packed end to end, where only the reply (and its end token) is learnt."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from stages.lib import losses, problems, records

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Batch = dict[str, "Tensor"]


def pack(tokenizer: Any, rows: list[records.Record], context: int, seed: int) -> "tuple[np.ndarray, np.ndarray]":
    """(ids, labels), each (N, context): rows in a seeded order, prompts labelled -100; what fills no row is dropped."""
    import numpy as np

    ids, labels = [], []
    for i in np.random.default_rng(seed).permutation(len(rows)):
        whole = problems.chat_ids(tokenizer, rows[i]["prompt"], rows[i]["solution"])
        begin = len(problems.prompt_ids(tokenizer, rows[i]["prompt"]))
        ids += whole
        labels += [losses.IGNORE] * begin + whole[begin:]
    full = len(ids) // context * context
    if not full:
        raise SystemExit(f"{len(rows)} replies do not fill one row of {context} tokens")
    return np.array(ids[:full]).reshape(-1, context), np.array(labels[:full]).reshape(-1, context)


def batches(tokenizer: Any, rows: list[records.Record], context: int, size: int, seed: int) -> Callable[[int], Batch]:
    """Batch number i, round and round the packed rows."""
    return partial(_batch, *pack(tokenizer, rows, context, seed), size)


def _batch(ids: "np.ndarray", labels: "np.ndarray", size: int, index: int) -> Batch:
    import torch

    chosen = [(index * size + i) % len(ids) for i in range(size)]
    return {"ids": torch.from_numpy(ids[chosen]), "labels": torch.from_numpy(labels[chosen])}


def loss(model: Any, batch: Batch) -> "Tensor":
    """Mean next-token loss over the reply tokens, nats/token."""
    return losses.next_token(model(input_ids=batch["ids"], use_cache=False).logits, batch["labels"])
