"""Replies that were liked or not, as batches.

A batch holds 2 B rows: first B replies to their own prompts, then the same replies each to the prompt of the one behind
it, from which the distance to the reference is told. Pairs count as one liked and one disliked reply. Shapes: B
replies, T positions.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch

from stages.align.parts import pairs
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record
from stages.lib.text import packing
from stages.lib.training import loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Verdict(NamedTuple):
    prompt: list[int]
    reply: list[int]
    liked: bool

    def row(self, reply: list[int]) -> pairs.Reply:
        """A reply to this prompt: ids and labels, each (T,)."""
        ids = torch.tensor([*self.prompt, *reply])
        return ids, torch.tensor([packing.IGNORE] * len(self.prompt) + reply)


def together(known: list[Verdict]) -> packing.Batch:
    """One batch: every reply, then every prompt with the reply of the one before it; and which were `liked`, (B,)."""
    own = [each.row(each.reply) for each in known]
    foreign = [each.row(known[number - 1].reply) for number, each in enumerate(known)]
    return packing.padded(own + foreign) | {"liked": torch.tensor([each.liked for each in known])}


def encode(tokenizer: "PreTrainedTokenizerFast", rows: list[Record], context: int) -> list[Verdict]:
    """The replies that fit into the context, whole."""
    every = [verdict(tokenizer, row, reply, liked) for row in rows for reply, liked in judged(row)]
    return packing.fitting(every, "replies", context, lambda each: len(each.prompt) + len(each.reply))


def judged(row: Record) -> list[tuple[str, bool]]:
    if "liked" in row:
        return [(row["solution"], row["liked"])]
    if set(pairs.SIDES) <= row.keys():
        return [(row["chosen"], True), (row["rejected"], False)]
    raise UserError(f"the examples must be replies that were liked or not, or preference pairs; '{row['id']}' is none")


def verdict(tokenizer: "PreTrainedTokenizerFast", row: Record, reply: str, liked: bool) -> Verdict:
    ids, labels, _ = packing.encode(tokenizer, {"id": row["id"], "prompt": row["prompt"], "solution": reply})
    begin = labels.count(packing.IGNORE)
    return Verdict(ids[:begin], ids[begin:], liked)


@torch.no_grad()
def compare(
    before: "PreTrainedModel", after: "PreTrainedModel", known: list[Verdict], size: int = 4
) -> dict[str, float]:
    """Of both models the log-probabilities of liked and of disliked replies (nats, means), as far as there are any."""
    found: dict[str, float] = {}
    for when, model in (("before", before), ("after", after)):
        for name, liked in (("liked", True), ("disliked", False)):
            rows = [each.row(each.reply) for each in known if each.liked == liked]
            parts = (packing.padded(rows[i : i + size]) for i in range(0, len(rows), size))
            values = [pairs.totals(model, loop.to_device(part, after.device)) for part in parts]
            if values:
                found[f"{name}_logprob_{when}"] = torch.cat(values).mean().item()
    return found
