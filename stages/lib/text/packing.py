"""Supervised rows: prompts with replies, several to a row, of which only the replies (and their end tokens) are learnt.

No example is cut and none sees its neighbours: positions begin at 0 for each, which tells attention where (document
masking: Llama 3, arXiv:2407.21783, section 3.2; whole examples: Ding et al. 2024, arXiv:2404.10830).
Shapes: N rows, B rows of a batch, T context.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stages.lib.frame.errors import UserError, about
from stages.lib.store import records, tokens
from stages.lib.text import chat

OPEN = 32  # rows that are filled at a time: more leave less padding, but mix the order less
IGNORE = -100  # label of a position that is not learnt from; the default of torch's cross entropy
Item = TypeVar("Item")
Batch = dict[str, Tensor]  # ids, labels (-100 where nothing is learnt), positions: (B, T)


def batches(tokenizer: Any, rows: list[records.Record], context: int, size: int, seed: int) -> Callable[[int], Batch]:
    """Batch number i, round and round the packed rows."""
    return partial(_batch, pack(tokenizer, rows, context, seed), size)


def shuffled(tokenizer: Any, examples: "list[Example]", context: int, size: int, seed: int) -> Callable[[int], Batch]:
    """The same of examples that are encoded already."""
    order = np.random.default_rng(seed).permutation(len(examples))
    return partial(_batch, filled(tokenizer, [examples[i] for i in order], context), size)


def in_order(tokenizer: Any, examples: "list[Example]", context: int, size: int) -> Iterator[Batch]:
    """Every packed row once."""
    columns = filled(tokenizer, examples, context)
    for first in range(0, len(columns["ids"]), size):
        yield {name: torch.from_numpy(rows[first : first + size]) for name, rows in columns.items()}


def _batch(columns: dict[str, np.ndarray], size: int, index: int) -> Batch:
    chosen = np.arange(index * size, (index + 1) * size) % len(columns["ids"])
    return {name: torch.from_numpy(rows[chosen]) for name, rows in columns.items()}


def learnt(batch: Batch) -> Tensor:
    """How many tokens of a batch are learnt; of rows that have ids alone, all."""
    return (batch.get("labels", batch["ids"])[:, 1:] != IGNORE).sum()


def beside(batch: Callable[[int], Batch], texts: np.ndarray | tokens.Translated, count: int) -> Callable[[int], Batch]:
    """Batches of replies and `count` whole texts, of which every token is learnt, (N, context): who learns to answer
    forgets what it no longer reads (rehearsal; mixed into fine-tuning as in Ouyang et al. 2022, arXiv:2203.02155,
    eq. 2)."""
    first = batch(0)
    if set(first) != {"ids", "labels", "positions"}:
        raise UserError("params.yaml: text_rows wants batches of packed replies; this technique's are others")
    if (width := first["ids"].shape[1]) != texts.shape[1]:
        raise UserError(f"params.yaml: context is {width}, but text_rows come in rows of {texts.shape[1]} tokens")
    return partial(_with_text, batch, tokens.batches(texts, count))


def _with_text(batch: Callable[[int], Batch], texts: Callable[[int], torch.Tensor], index: int) -> Batch:
    rows = texts(index)
    text = {"ids": rows, "labels": rows, "positions": torch.arange(rows.shape[1]).expand_as(rows)}
    return {name: torch.cat([part, text[name]]) for name, part in batch(index).items()}


def pack(tokenizer: Any, rows: list[records.Record], context: int, seed: int) -> dict[str, np.ndarray]:
    """ids, labels and positions, each (N, context): every example whole, in a seeded order, the rest padding."""
    order = np.random.default_rng(seed).permutation(len(rows))
    return filled(tokenizer, [example for i in order for example in turns(tokenizer, rows[i])], context)


def filled(tokenizer: Any, examples: "list[Example]", context: int) -> dict[str, np.ndarray]:
    """ids, labels and positions of whole examples, each (N, context)."""
    kept = fitting(examples, "examples", context, lambda example: len(example[0]))
    filler = (chat.filler(tokenizer), IGNORE, 0)
    columns = zip(*(whole(row, context, filler) for row in fit(kept, context)), strict=True)
    return {name: np.array(column) for name, column in zip(("ids", "labels", "positions"), columns, strict=True)}


def fitting(items: list[Item], name: str, context: int, tokens: Callable[[Item], int]) -> list[Item]:
    """Those that fit into the context, whole; how many do not is said, and none is an error."""
    kept = [item for item in items if tokens(item) <= context]
    if not kept:
        raise UserError(f"none of {len(items)} {name} fits into a context of {context} tokens")
    if left_out := len(items) - len(kept):
        print(f"{left_out} of {len(items)} {name} are longer than {context} tokens and left out")
    return kept


Example = tuple[list[int], list[int], list[int]]  # ids, labels, positions


def encode(tokenizer: Any, row: records.Record) -> Example:
    said = reply(row)
    with about(f"record '{row['id']}'"):
        ids, begin, *_ = chat.chat(tokenizer, row["prompt"], said)
    return ids, [IGNORE] * begin + ids[begin:], list(range(len(ids)))


def numbered(tokenizer: Any, rows: list[records.Record]) -> list[Example]:
    """Each prompt with one place behind it, whose label is the number of the record: whoever reads a packed row there
    knows what it has read."""
    found = []
    for number, row in enumerate(rows):
        ids = [*chat.prompt_ids(tokenizer, row["prompt"]), chat.filler(tokenizer)]
        found.append((ids, [IGNORE] * (len(ids) - 1) + [number], list(range(len(ids)))))
    return found


def reply(row: records.Record) -> str:
    """What is learnt to say; of two replies the one that was liked better."""
    if "liked" in row:
        wrong = f"record '{row['id']}' is a reply that was liked or not"
        raise UserError(f"{wrong}: learnt by heart are the replies of chats, problems, extracts and pairs")
    said = row.get("solution", row.get("chosen"))
    if said is None:
        raise UserError(f"record '{row['id']}' has no answer to learn: it is one of those that a teacher is to label")
    return said


def turns(tokenizer: Any, row: records.Record) -> list[Example]:
    """Every reply of a conversation, learnt as it is asked for: in one example where the template writes a turn alike
    whatever follows it, else each in an example of its own. A record may say that its last reply alone is learnt, and a
    message that it is not."""
    if row.get("learn") == "last":
        return [encode(tokenizer, row)]
    earlier = row["prompt"] if isinstance(row["prompt"], list) else []
    found: list[Example] = []
    for number, message in enumerate([*earlier, {"role": "assistant", "content": reply(row)}]):
        if chat.learnt(message):
            asked = earlier[:number] or row["prompt"]
            ids, labels, positions = encode(tokenizer, row | {"prompt": asked, "solution": message["content"]})
            if found and ids[: len(found[-1][0])] == found[-1][0]:
                known = found.pop()[1]
                labels[: len(known)] = known
            found.append((ids, labels, positions))
    return found


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


def padded(examples: list[tuple[Tensor, Tensor]]) -> Batch:
    """A batch of one example (ids, labels) a row, filled up on the right, where no reply looks."""
    ids, labels = zip(*examples, strict=True)
    ids_BT = pad_sequence(list(ids), batch_first=True)
    return {
        "ids": ids_BT,
        "labels": pad_sequence(list(labels), batch_first=True, padding_value=IGNORE),
        "positions": torch.arange(ids_BT.shape[1], device=ids_BT.device).expand_as(ids_BT),
    }
