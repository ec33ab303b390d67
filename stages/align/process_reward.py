"""A reward model of steps: after every line of a reply, how likely the right answer still comes. Wang et al. 2023
(Math-Shepherd), arXiv:2312.08935, eq. 3; of whole replies see reward.py.

    mean over steps of -(y log s(r) + (1 - y) log(1 - s(r)))      s the logistic function

r is the score behind the step (stages/lib/nets/reward.py), y what traces/steps says of it: the share of continuations
from there that came out right, or with `hard` whether any did (their HE). What it is good for: traces/rewarded with
`by: min` or `product`. Cost: one pass forward and backward. Shapes: B replies, T positions, S steps of them all.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stages.align import Alignment, Given, Reference
from stages.align.parts import pairs
from stages.lib.frame.errors import UserError
from stages.lib.nets import reward
from stages.lib.store.records import Record
from stages.lib.text import packing, steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NONE = -1.0  # where no step ends
Reply = tuple[Tensor, Tensor, Tensor]  # ids, labels, and at the end of every step what is said of it: (T,)


class ProcessReward(Alignment):
    method: Literal["process_reward"]
    hard: bool = True

    def batches(self, given: Given) -> Callable[[int], packing.Batch]:
        if "steps" not in given.examples[0]:
            raise UserError("the examples must say of every step whether it is right: traces/steps makes such")
        order = np.random.default_rng(self.training.seed).permutation(len(given.examples))
        every = [self.encode(given.tokenizer, given.examples[i]) for i in order]
        known = packing.fitting(every, "replies", self.context, lambda reply: len(reply[0]))
        return pairs.rounds(known, self.training.part_size, together)

    def encode(self, tokenizer: "PreTrainedTokenizerFast", row: Record) -> Reply:
        ids, labels, _ = packing.encode(tokenizer, {key: row[key] for key in ("id", "prompt", "solution")})
        begin = labels.count(packing.IGNORE)
        ends = steps.ends(tokenizer, ids[begin:])
        if len(ends) != len(row["steps"]):
            said = f"'{row['id']}' has {len(row['steps'])} steps, but {len(ends)} in this model's tokens"
            raise UserError(f"{said}: train a model that has the vocabulary of who wrote them")
        said_T = torch.full((len(ids),), NONE)
        said_T[[begin + end for end in ends]] = torch.tensor([float(y > 0) if self.hard else y for y in row["steps"]])
        return torch.tensor(ids), torch.tensor(labels), said_T

    def loss(
        self, policy: "PreTrainedModel", reference: Reference, batch: packing.Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        asked_BT = batch["steps"] != NONE
        score_S, said_S = reward.at(policy, batch, asked_BT), batch["steps"][asked_BT]
        right = ((score_S > 0) == (said_S > 0.5)).float().mean()
        return F.binary_cross_entropy_with_logits(score_S, said_S), {"accuracy": right}

    def terms(self, batch: packing.Batch) -> Tensor:
        return (batch["steps"] != NONE).sum()


def together(replies: list[Reply]) -> packing.Batch:
    """ids, labels, positions and `steps`, (B, T)."""
    said_BT = pad_sequence([said for _, _, said in replies], batch_first=True, padding_value=NONE)
    return packing.padded([(ids, labels) for ids, labels, _ in replies]) | {"steps": said_BT}
