"""Preference pairs as batches, and how likely a model finds both replies.

A batch holds 2 B rows, a reply each: first B chosen ones, then B rejected ones. Shapes: B pairs, T positions, N reply
tokens, P held-out pairs, V vocabulary.
"""

import json
from abc import ABC
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.align import Alignment, Given
from stages.lib.frame.errors import UserError
from stages.lib.nets import packed
from stages.lib.store.records import Record
from stages.lib.text import packing
from stages.lib.training import loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SIDES = ("chosen", "rejected")
Reply = tuple[Tensor, Tensor]  # ids (T,), labels (T,)
Pair = tuple[Reply, Reply]
Known = TypeVar("Known")


class OfPairs(Alignment, ABC):
    """What learns from preference pairs."""

    def batches(self, given: Given) -> Callable[[int], packing.Batch]:
        """In a seeded order."""
        order = np.random.default_rng(self.training.seed).permutation(len(given.examples))
        known = encode(given.tokenizer, [given.examples[i] for i in order], self.context)
        return rounds(known, self.training.part_size, together)


def rounds(
    known: list[Known], size: int, together: Callable[[list[Known]], packing.Batch]
) -> Callable[[int], packing.Batch]:
    """Batch number i, `size` of them together, round and round."""
    return partial(_batch, known, size, together)


def _batch(
    known: list[Known], size: int, together: Callable[[list[Known]], packing.Batch], index: int
) -> packing.Batch:
    return together([known[(index * size + i) % len(known)] for i in range(size)])


def together(pairs: list[Pair]) -> packing.Batch:
    """One batch: every chosen reply, then every rejected one."""
    return packing.padded([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs])


def encode(tokenizer: "PreTrainedTokenizerFast", pairs: list[Record], context: int) -> list[Pair]:
    """The pairs of which both replies fit into the context, whole."""
    if "liked" in pairs[0]:
        pairs = of_verdicts(pairs)
    if missing := set(SIDES) - pairs[0].keys():
        raise UserError(f"the examples must be preference pairs; {', '.join(sorted(missing))} missing in them")
    every = [(reply(tokenizer, pair, "chosen"), reply(tokenizer, pair, "rejected")) for pair in pairs]
    return packing.fitting(every, "pairs", context, lambda pair: max(len(ids) for ids, _ in pair))


def of_verdicts(rows: list[Record]) -> list[Record]:
    """A pair of each prompt that has both: its replies that were liked, each with one that was not, none twice."""
    liked, disliked = (defaultdict[str, dict[str, Record]](dict) for _ in range(2))
    for row in rows:
        kind = liked if row["liked"] else disliked
        kind[json.dumps(row["prompt"])].setdefault(row["solution"], row)
    made = [
        {"id": good["id"], "prompt": good["prompt"], "chosen": good["solution"], "rejected": bad["solution"]}
        for prompt, some in liked.items()
        for good, bad in zip(some.values(), disliked[prompt].values(), strict=False)
    ]
    if not made:
        raise UserError(
            "the examples must be preference pairs, or both a reply that was liked and one that was not to one prompt; "
            f"'{rows[0]['id']}' and all others are single replies: `method: kto` learns from those"
        )
    return made


def reply(tokenizer: "PreTrainedTokenizerFast", pair: Record, side: str) -> Reply:
    ids, labels, _ = packing.encode(tokenizer, pair | {"solution": pair[side]})
    return torch.tensor(ids), torch.tensor(labels)


def log_probabilities(model: nn.Module, batch: packing.Batch) -> tuple[Tensor, Tensor]:
    """log p(reply | prompt) of the chosen and of the rejected replies, nats, each (B,)."""
    chosen_B, rejected_B = totals(model, batch).chunk(2)
    return chosen_B, rejected_B


def totals(model: nn.Module, batch: packing.Batch) -> Tensor:
    """log p(reply | prompt) of every row, nats, (2 B,)."""
    logits_NV, tokens_N = packed.logits(model, batch)
    token_N = -F.cross_entropy(logits_NV.float(), tokens_N, reduction="none")
    row_N = (batch["labels"][:, 1:] != packing.IGNORE).nonzero()[:, 0]
    return token_N.new_zeros(len(batch["ids"])).index_add(0, row_N, token_N)


def lengths(batch: packing.Batch) -> tuple[Tensor, Tensor]:
    """Reply tokens of the chosen and of the rejected replies, each (B,)."""
    chosen_B, rejected_B = (batch["labels"][:, 1:] != packing.IGNORE).sum(1).chunk(2)
    return chosen_B, rejected_B


def measures(margin_B: Tensor, chosen_B: Tensor, rejected_B: Tensor) -> dict[str, Tensor]:
    """For the curve; both log-probabilities apart, since a margin may grow while the chosen reply falls."""
    return {
        "margin": margin_B.mean(),
        "accuracy": (margin_B > 0).float().mean(),
        "chosen_logprob": chosen_B.mean(),
        "rejected_logprob": rejected_B.mean(),
    }


@torch.no_grad()
def compare(before: "PreTrainedModel", after: "PreTrainedModel", pairs: list[Pair], size: int = 2) -> dict[str, float]:
    """Of both models the log-probabilities of the replies (nats, means) and the share of pairs whose chosen reply is
    the likelier one; and the margin, by which the second model moved them apart (nats, mean of log-ratio differences).
    """
    parts = [loop.to_device(together(pairs[i : i + size]), after.device) for i in range(0, len(pairs), size)]
    found: dict[str, float] = {}
    gaps = []
    for when, model in (("before", before), ("after", after)):
        replies = zip(*(log_probabilities(model, part) for part in parts), strict=True)
        chosen_P, rejected_P = (torch.cat(side) for side in replies)
        found[f"chosen_logprob_{when}"] = chosen_P.mean().item()
        found[f"rejected_logprob_{when}"] = rejected_P.mean().item()
        found[f"preference_accuracy_{when}"] = (chosen_P > rejected_P).float().mean().item()
        gaps.append(chosen_P - rejected_P)
    return found | {"margin": (gaps[1] - gaps[0]).mean().item()}
