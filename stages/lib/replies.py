"""Supervised rows: prompts with replies, several to a row, of which only the replies (and their end tokens) are learnt.

No example is cut and none sees its neighbours: positions begin at 0 for each, which tells attention where (document
masking: Llama 3, arXiv:2407.21783, section 3.2; whole examples: Ding et al. 2024, arXiv:2404.10830). A recurrent state
or a convolution knows no bounds, so models that have one read each example in a row of its own.
Shapes: N rows or reply tokens, B rows of a batch, T context, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stages.lib import losses, packed, problems, records

OPEN = 32  # rows that are filled at a time: more leave less padding, but mix the order less
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # layers that a mask keeps apart
Batch = dict[str, Tensor]  # ids, labels (-100 where nothing is learnt), positions: (B, T)


def batches(tokenizer: Any, rows: list[records.Record], context: int, size: int, seed: int) -> Callable[[int], Batch]:
    """Batch number i, round and round the packed rows."""
    return partial(_batch, pack(tokenizer, rows, context, seed), size)


def _batch(packed: dict[str, np.ndarray], size: int, index: int) -> Batch:
    chosen = np.arange(index * size, (index + 1) * size) % len(packed["ids"])
    return {name: torch.from_numpy(rows[chosen]) for name, rows in packed.items()}


def pack(tokenizer: Any, rows: list[records.Record], context: int, seed: int) -> dict[str, np.ndarray]:
    """ids, labels and positions, each (N, context): every example whole, in a seeded order, the rest padding."""
    examples = [encode(tokenizer, rows[i]) for i in np.random.default_rng(seed).permutation(len(rows))]
    fitting = [example for example in examples if len(example[0]) <= context]
    if not fitting:
        raise SystemExit(f"none of {len(rows)} examples fits into a context of {context} tokens")
    if left_out := len(examples) - len(fitting):
        print(f"{left_out} of {len(examples)} examples are longer than {context} tokens and left out")
    filler = (tokenizer.pad_token_id, losses.IGNORE, 0)
    columns = zip(*(whole(row, context, filler) for row in fit(fitting, context)), strict=True)
    return {name: np.array(column) for name, column in zip(("ids", "labels", "positions"), columns, strict=True)}


Example = tuple[list[int], list[int], list[int]]  # ids, labels, positions


def encode(tokenizer: Any, row: records.Record) -> Example:
    asked = len(problems.prompt_text(tokenizer, row["prompt"]))
    text = problems.chat_text(tokenizer, row["prompt"], row["solution"])
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, begin = coded["input_ids"], sum(end <= asked for _, end in coded["offset_mapping"])
    return ids, [losses.IGNORE] * begin + ids[begin:], list(range(len(ids)))


def fit(examples: list[Example], context: int) -> list[list[Example]]:
    """Best fit: each example into the fullest open row that has room; the fullest row closes when too many are open."""
    done: list[list[Example]] = []
    open_rows: list[list[Example]] = []
    used: list[int] = []  # tokens in each open row
    for example in examples:
        room = [row for row, tokens in enumerate(used) if tokens + len(example[0]) <= context]
        if room:
            row = max(room, key=used.__getitem__)
            open_rows[row].append(example)
            used[row] += len(example[0])
            continue
        if len(open_rows) == OPEN:
            fullest = used.index(max(used))
            done.append(open_rows.pop(fullest))
            used.pop(fullest)
        open_rows.append([example])
        used.append(len(example[0]))
    return done + open_rows


def whole(row: list[Example], context: int, filler: tuple[int, int, int]) -> list[list[int]]:
    """The ids, labels and positions of a row, filled up."""
    parts = [[value for example in row for value in example[i]] for i in range(3)]
    return [part + [each] * (context - len(part)) for part, each in zip(parts, filler, strict=True)]


def logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the model says where a reply token comes next, (N, V), and those tokens, (N,); the head skips the rest."""
    output, learnt_BT, tokens_N = read(model, batch)
    return model.get_output_embeddings()(output.last_hidden_state[:, :-1][learnt_BT]), tokens_N


def read(model: Any, batch: Batch, **more: Any) -> tuple[Any, Tensor, Tensor]:
    """The decoder's output, where in it a learnt token comes next, (B, T - 1), and those tokens, (N,).

    Of rows that are one text from end to end, which have ids alone, every token is learnt. `more` is the decoder's.
    """
    if "positions" in batch and recurrent(model):
        batch = {name: part for name, part in apart(batch).items() if name != "positions"}
    labels_BT = batch.get("labels", batch["ids"])[:, 1:]
    learnt_BT = labels_BT != losses.IGNORE
    with packed.examples(model, batch.get("positions")) as given:
        output = model.get_decoder()(input_ids=batch["ids"], use_cache=False, **given, **more)
    return output, learnt_BT, labels_BT[learnt_BT]


def recurrent(model: Any) -> bool:
    """Whether something passes from token to token that no mask stops: a state, a convolution."""
    return model._is_stateful or bool(set(getattr(model.config, "layer_types", None) or ()) - ATTENTION)


def apart(batch: Batch) -> Batch:
    """The same examples in the same order, one a row."""
    examples = []
    for ids, labels, positions in zip(batch["ids"], batch["labels"], batch["positions"], strict=True):
        begins = (positions == 0).nonzero().flatten().tolist()
        spans = [slice(a, b) for a, b in pairwise([*begins, len(ids)])]
        examples += [(ids[span], labels[span]) for span in spans if (labels[span] != losses.IGNORE).any()]
    return padded(examples)


def padded(examples: list[tuple[Tensor, Tensor]]) -> Batch:
    """A batch of one example (ids, labels) a row, filled up on the right, where no reply looks."""
    ids, labels = zip(*examples, strict=True)
    ids_BT = pad_sequence(list(ids), batch_first=True)
    return {
        "ids": ids_BT,
        "labels": pad_sequence(list(labels), batch_first=True, padding_value=losses.IGNORE),
        "positions": torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT),
    }


def loss(model: Any, batch: Batch) -> Tensor:
    """Mean next-token loss over the reply tokens, nats/token."""
    logits_NV, tokens_N = logits(model, batch)
    return F.cross_entropy(logits_NV.float(), tokens_N)
