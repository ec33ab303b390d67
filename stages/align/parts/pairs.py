"""Preference pairs as batches, and how likely a model finds both replies.

A batch holds 2 B rows, a reply each: first B chosen ones, then B rejected ones. Shapes: B pairs, T positions, N reply
tokens, P held-out pairs, V vocabulary.
"""

from abc import ABC
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.align import Alignment
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

    def batches(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        problems: list[Record],
        examples: list[Record],
        policy: "PreTrainedModel",
    ) -> Callable[[int], packing.Batch]:
        return batches(tokenizer, examples, self.context, self.training.part_size, self.training.seed)


def batches(
    tokenizer: "PreTrainedTokenizerFast", pairs: list[Record], context: int, size: int, seed: int
) -> Callable[[int], packing.Batch]:
    """Batch number i, round and round the pairs in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    return rounds(encode(tokenizer, [pairs[i] for i in order], context), size, together)


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
        raise UserError(
            f"the examples must be preference pairs, records with chosen and rejected; '{pairs[0]['id']}' is one reply "
            "and whether it was liked: `method: kto` learns from those"
        )
    if missing := set(SIDES) - pairs[0].keys():
        raise UserError(f"the examples must be preference pairs; {', '.join(sorted(missing))} missing in them")
    every = [(reply(tokenizer, pair, "chosen"), reply(tokenizer, pair, "rejected")) for pair in pairs]
    return packing.fitting(every, "pairs", context, lambda pair: max(len(ids) for ids, _ in pair))


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
def compare(before: "PreTrainedModel", after: "PreTrainedModel", pairs: list[Pair], size: int = 16) -> dict[str, float]:
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
