"""Which of a teacher's samples are kept: what solutions, llama_cpp and endpoint have in common.

verifier          the first of up to `attempts` that the task's scorer gives full marks; a problem that is solved is not
                  asked again. Rejection sampling: Yuan et al. 2023, arXiv:2308.01825, section 3.3; best of n.
self_consistency  the answer that most of `attempts` samples end in, and the first sample that says so; no scorer looks
                  at it. Wang et al. 2022, arXiv:2203.11171.
first             the first sample that says anything, right or wrong: behaviour cloning.

A record says how it was chosen: "chosen_by", and "votes" of self-consistency.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt

from stages.lib.store.records import Record
from stages.lib.text import problems as tasks
from stages.traces import Recording

Ask = Callable[[list[str], int], list[str]]  # prompts, number of the attempt -> a reply to each


class Sampling(Recording):
    """What every technique that asks for text has in its params."""

    count: PositiveInt  # problems asked
    choose: Literal["verifier", "self_consistency", "first"] = "verifier"
    attempts: PositiveInt = 2
    temperature: NonNegativeFloat = 0.7  # 0: the likeliest token, so that one attempt is enough
    max_new_tokens: PositiveInt = 64
    batch_size: PositiveInt = 64


def drawn(rows: list[Record], p: Any) -> list[list[Record]]:
    """`count` problems in a seeded order, in batches, each from the shortest prompt to the longest."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(p.seed))[: p.count]
    return [sorted((rows[i] for i in part), key=lambda row: len(row["prompt"]))
            for part in map(torch.Tensor.tolist, order.split(p.batch_size))]  # fmt: skip


def kept(asked: list[Record], ask: Ask, p: Any) -> Iterator[Record]:
    """One batch of problems with the chosen solution to each."""
    choose = {"verifier": verified, "self_consistency": agreed, "first": first}[p.choose]
    for record in choose(asked, ask, p.attempts):
        yield record | {"chosen_by": p.choose}


def verified(asked: list[Record], ask: Ask, attempts: int) -> Iterator[Record]:
    for attempt in range(attempts):
        replies = ask([row["prompt"] for row in asked], attempt)
        marks = [tasks.correct(row, reply) for row, reply in zip(asked, replies, strict=True)]
        for row, reply, right in zip(asked, replies, marks, strict=True):
            if right:
                yield row | {"solution": reply, "attempt": attempt}
        asked = [row for row, right in zip(asked, marks, strict=True) if not right]
        if not asked:
            return


def agreed(asked: list[Record], ask: Ask, attempts: int) -> Iterator[Record]:
    prompts = [row["prompt"] for row in asked]
    samples = zip(*(ask(prompts, attempt) for attempt in range(attempts)), strict=True)
    for row, replies in zip(asked, samples, strict=True):
        answers = [tasks.extract(reply) for reply in replies]
        votes = Counter(answer for answer in answers if answer)
        if votes:
            answer, count = votes.most_common(1)[0]  # of equally many the one that came first
            number = answers.index(answer)
            yield row | {"solution": replies[number], "attempt": number, "votes": count}


def first(asked: list[Record], ask: Ask, attempts: int) -> Iterator[Record]:
    for attempt in range(attempts):
        silent = []
        for row, reply in zip(asked, ask([row["prompt"] for row in asked], attempt), strict=True):
            if reply.strip():
                yield row | {"solution": reply, "attempt": attempt}
            else:
                silent.append(row)
        if not (asked := silent):
            return
