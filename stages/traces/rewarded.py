"""What a reward model thinks of the replies that traces/rollouts wrote down, and what its choice among them is worth.

Metrics, for N = 1, 2, 4, ... replies to a problem, as many as there are: the share of problems answered right by

oracle_of_N      any of them (pass@N: the ceiling)
best_of_N        the one with the highest score
majority_of_N    the answer that most of them end in (Wang et al. 2022, arXiv:2203.11171)
weighted_of_N    the answer with the largest sum of likelihoods, the softmax of the scores (Li et al. 2022,
                 arXiv:2206.02336, section 3.1)

A reward model scores the whole reply; by `min` or `product` one of steps (align/process_reward) scores each line, and
the reply by its worst line (Wang et al. 2023, arXiv:2312.08935, section 3.4) or by the logarithm of the product of
their likelihoods (Lightman et al. 2023, arXiv:2305.20050, section 2.6). Means are over all disjoint N of a group; of
answers with equally many votes the one that came first. Cost: one pass forward over every reply. Shapes: B replies.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from math import exp
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt

from stages.lib.frame.errors import UserError
from stages.lib.nets import reward
from stages.lib.store import records
from stages.lib.store.records import Record
from stages.lib.text import packing, problems, steps
from stages.lib.training import loop
from stages.traces import Readings
from stages.traces.parts import replies

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NEEDED = ("liked", "stopped", "tokens")


class Rewarded(Readings):
    method: Literal["rewarded"]
    by: Literal["reply", "min", "product"] = "reply"
    context: int = Field(256, ge=16)  # tokens of prompt and reply
    batch_size: PositiveInt = 16

    @torch.inference_mode()
    def record(self, teacher: "tuple[PreTrainedModel, PreTrainedTokenizerFast]", source: Path) -> Iterator[Record]:
        model, tokenizer = teacher
        rows = replies.load(source, NEEDED)
        for first in range(0, len(rows), self.batch_size):
            some = rows[first : first + self.batch_size]
            every = [packing.encode(tokenizer, {key: row[key] for key in ("id", "prompt", "solution")}) for row in some]
            if too_long := [row["id"] for row, (ids, *_) in zip(some, every, strict=True) if len(ids) > self.context]:
                raise UserError(f"{source}: '{too_long[0]}' is longer than context {self.context}: give more")
            batch = packing.padded([(torch.tensor(ids), torch.tensor(labels)) for ids, labels, _ in every])
            scores = self.scores(model, tokenizer, loop.to_device(batch, model.device)).tolist()
            yield from (row | {"score": round(score, 6)} for row, score in zip(some, scores, strict=True))

    def scores(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", batch: packing.Batch
    ) -> torch.Tensor:
        """Of every row, (B,)."""
        if self.by == "reply":
            return reward.scores(model, batch)
        asked_BT = torch.zeros_like(batch["ids"], dtype=torch.bool)
        for row, labels in enumerate(batch["labels"]):
            places = (labels != packing.IGNORE).nonzero()[:, 0].tolist()
            ends = steps.ends(tokenizer, labels[places].tolist())
            asked_BT[row, [places[end] for end in ends]] = True
        parts = reward.at(model, batch, asked_BT).split(asked_BT.sum(1).tolist())
        if self.by == "min":
            return torch.stack([score.min() for score in parts])
        return torch.stack([F.logsigmoid(score).sum() for score in parts])

    def measure(self, teacher: object, folder: Path) -> dict[str, float]:
        groups = defaultdict[str, list[Record]](list)
        for row in records.load(folder, "train"):
            groups[row["id"].rpartition("/")[0]].append(row)
        found, size = {}, 1
        while size <= min(map(len, groups.values())):
            some = [part for group in groups.values() for part in disjoint(group, size)]
            for name, choose in CHOICES.items():
                found[f"{name}_of_{size}"] = mean(choose(part) for part in some)
            size *= 2
        return found


def disjoint(group: list[Record], size: int) -> list[list[Record]]:
    return [group[first : first + size] for first in range(0, len(group) - size + 1, size)]


def oracle(rows: Sequence[Record]) -> bool:
    return any(row["liked"] for row in rows)


def best(rows: Sequence[Record]) -> bool:
    return max(rows, key=lambda row: row["score"])["liked"]


def voted(weight: Callable[[Record], float]) -> Callable[[Sequence[Record]], bool]:
    def choose(rows: Sequence[Record]) -> bool:
        votes, liked = defaultdict[str, float](float), dict[str, bool]()
        for row in rows:
            if row["stopped"] and (answer := problems.vote(row, row["solution"])) is not None:
                votes[answer] += weight(row)
                liked.setdefault(answer, row["liked"])
        return bool(votes) and liked[max(votes, key=votes.__getitem__)]

    return choose


CHOICES: dict[str, Callable[[Sequence[Record]], bool]] = {
    "oracle": oracle,
    "best": best,
    "majority": voted(lambda row: 1.0),
    "weighted": voted(lambda row: exp(row["score"])),
}
