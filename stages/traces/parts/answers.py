"""Which of a teacher's samples are kept: what solutions, llama_cpp and endpoint have in common.

verifier          the first of up to `attempts` that the task's scorer gives full marks; a problem that is solved is not
                  asked again. Rejection sampling: Yuan et al. 2023, arXiv:2308.01825, section 3.3; best of n.
self_consistency  the answer that most of `attempts` samples end in, and the first sample that says so, right or wrong;
                  numbers and JSON count by what they say, however written. Wang et al. 2022, arXiv:2203.11171.
first             the first sample that says anything, right or wrong: behaviour cloning.

A record says how it was chosen: "chosen_by", and "votes" of self-consistency.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator

from stages.lib.store import records
from stages.lib.store.records import Record
from stages.lib.text import problems
from stages.traces import Recording

Ask = Callable[[list[str], int], list[str]]  # prompts, number of the attempt -> a reply to each


class Writer(ABC):
    """A teacher that replies in text."""

    @abstractmethod
    def reply(self, batch: int, prompts: list[str], attempt: int) -> list[str]:
        """A reply to each prompt; what is drawn depends on the numbers of the batch and of the attempt."""

    def spent(self) -> dict[str, float]:
        """What all its replies took, where they are counted."""
        return {}


class Answers(Recording[Writer], ABC):
    """Recordings of text: what every technique that asks for replies has in its params, and how it asks."""

    seed: int = 0  # of the choice of problems, and of the replies
    count: PositiveInt  # problems asked
    choose: Literal["verifier", "self_consistency", "first"] = "verifier"
    attempts: PositiveInt = 2
    temperature: NonNegativeFloat = 0.7  # 0: the likeliest token, in every attempt the same
    max_new_tokens: PositiveInt = 64
    batch_size: PositiveInt = 64

    @model_validator(mode="after")
    def attempts_count(self) -> "Answers":
        if self.temperature == 0 and self.attempts > 1:
            raise ValueError(f"attempts is {self.attempts}, but at temperature 0 all are the same: write `attempts: 1`")
        return self

    def record(self, teacher: Writer, source: Path) -> Iterator[Record]:
        rows = records.load(source / "records", "train")
        for number, batch in enumerate(drawn(rows, self.seed, self.count, self.batch_size)):
            yield from self.kept(batch, partial(teacher.reply, number))

    def measure(self, teacher: Writer, folder: Path) -> dict[str, float]:
        return teacher.spent()

    def kept(self, rows: list[Record], ask: Ask) -> Iterator[Record]:
        """One batch of problems with the chosen solution to each."""
        choose = {"verifier": verified, "self_consistency": agreed, "first": first}[self.choose]
        for record in choose(rows, ask, self.attempts):
            theirs = {key: value for key, value in record.items() if key != "liked"}  # that was another reply
            yield theirs | {"chosen_by": self.choose}


def drawn(rows: list[Record], seed: int, count: int, batch_size: int) -> list[list[Record]]:
    """`count` problems in a seeded order, in batches, each from the shortest prompt to the longest."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:count]
    return [
        sorted((rows[i] for i in part.tolist()), key=lambda row: len(row["prompt"])) for part in order.split(batch_size)
    ]


def verified(rows: list[Record], ask: Ask, attempts: int) -> Iterator[Record]:
    for attempt in range(attempts):
        replies = ask([row["prompt"] for row in rows], attempt)
        correct = [problems.correct(row, reply) for row, reply in zip(rows, replies, strict=True)]
        for row, reply, right in zip(rows, replies, correct, strict=True):
            if right:
                yield row | {"solution": reply, "attempt": attempt}
        rows = [row for row, right in zip(rows, correct, strict=True) if not right]
        if not rows:
            return


def agreed(rows: list[Record], ask: Ask, attempts: int) -> Iterator[Record]:
    prompts = [row["prompt"] for row in rows]
    samples = zip(*(ask(prompts, attempt) for attempt in range(attempts)), strict=True)
    for row, replies in zip(rows, samples, strict=True):
        answers = [problems.vote(row, reply) for reply in replies]
        votes = Counter(answer for answer in answers if answer)
        if votes:
            answer, count = votes.most_common(1)[0]  # of equally many the one that came first
            number = answers.index(answer)
            yield row | {"solution": replies[number], "attempt": number, "votes": count}


def first(rows: list[Record], ask: Ask, attempts: int) -> Iterator[Record]:
    for attempt in range(attempts):
        silent = []
        for row, reply in zip(rows, ask([row["prompt"] for row in rows], attempt), strict=True):
            if reply.strip():
                yield row | {"solution": reply, "attempt": attempt}
            else:
                silent.append(row)
        if not (rows := silent):
            return
