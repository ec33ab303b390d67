"""Preferences without people: a model behind an endpoint answers, finds fault with its answer by a principle, and
writes it anew. Constitutional AI, Bai et al. 2022, arXiv:2212.08073, section 3.1.

The last revision is `chosen`, the first answer `rejected`, so align/dpo, orpo, simpo and reward learn from them. Each
question gets a principle of its own in every round, drawn by the seed. Questions of which a reply was cut short or
empty, or whose revision says the same as the answer, are left out. Cost: `count` x (1 + 2 `rounds`) requests.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveInt

from stages.lib.sampling.endpoint import Client, Service
from stages.lib.store import records
from stages.lib.store.records import Record
from stages.lib.text import chat, duplicates
from stages.traces import Recording
from stages.traces.parts.answers import drawn

CRITIQUE = """Somebody was asked this and gave this answer.

[What was asked]
{asked}

[Answer]
{answer}

[Principle]
{principle}

Say in a few sentences where the answer does not follow the principle."""
REVISION = """Somebody was asked this, gave this answer, and was criticised for it.

[What was asked]
{asked}

[Answer]
{answer}

[Criticism]
{critique}

Write the answer anew so that it meets the criticism. The answer and nothing else."""


class Draft(NamedTuple):
    row: Record
    first: str
    last: str
    principles: list[str]  # that it was revised by


class Constitution(Service, Recording[Client]):
    method: Literal["constitution"]
    principles: list[str] = Field(min_length=1)  # what an answer should be, a sentence each
    count: PositiveInt  # questions
    rounds: PositiveInt = 1  # of critique and revision
    seed: int = 0  # of the choice of questions and principles, and of the replies
    temperature: NonNegativeFloat = 0.7
    max_new_tokens: PositiveInt = 512  # of an answer, of a critique
    batch_size: PositiveInt = 64  # questions that go through their rounds together

    def section(self) -> str:
        return "endpoints"

    def open(self, model: Path | None, place: Path) -> Client:
        return Client(self, place)

    def record(self, teacher: Client, source: Path) -> Iterator[Record]:
        dice = np.random.default_rng(self.seed)
        for rows in drawn(records.load(source / "records", "train"), self.seed, self.count, self.batch_size):
            said = self.said(teacher, [chat.plain(row["prompt"]) for row in rows], 0)
            drafts = [Draft(row, answer, answer, []) for row, answer in zip(rows, said, strict=True) if answer]
            for number in range(self.rounds):
                drafts = self.revised(teacher, drafts, dice, number)
            for row, first, last, principles in drafts:
                if duplicates.plain(first) != duplicates.plain(last):
                    about = {"id": row["id"], "family": row["family"], "prompt": row["prompt"]}
                    yield about | {"chosen": last, "rejected": first, "principles": principles}

    def revised(self, teacher: Client, drafts: list[Draft], dice: np.random.Generator, number: int) -> list[Draft]:
        """After a round; without those of which the model had nothing more to say."""
        chosen = [self.principles[i] for i in dice.integers(len(self.principles), size=len(drafts))]
        asked = [{"asked": chat.plain(draft.row["prompt"]), "answer": draft.last} for draft in drafts]
        faults = [CRITIQUE.format(principle=each, **about) for each, about in zip(chosen, asked, strict=True)]
        critiques = self.said(teacher, faults, 2 * number + 1)
        left = [i for i, critique in enumerate(critiques) if critique]
        again = self.said(teacher, [REVISION.format(critique=critiques[i], **asked[i]) for i in left], 2 * number + 2)
        return [
            drafts[i]._replace(last=answer, principles=[*drafts[i].principles, chosen[i]])
            for i, answer in zip(left, again, strict=True)
            if answer
        ]

    def said(self, teacher: Client, prompts: list[str], turn: int) -> list[str]:
        """The replies; one that was cut short counts as none."""
        sampling = {"temperature": self.temperature, "seed": self.seed + turn}
        answers = teacher.ask(prompts, max_tokens=self.max_new_tokens, **sampling)
        return [answer["text"].strip() if answer["finish"] != "length" else "" for answer in answers]

    def measure(self, teacher: Client, folder: Path) -> dict[str, float]:
        return teacher.spent()
