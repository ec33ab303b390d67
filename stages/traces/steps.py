"""Which steps of a reply are right: each line of what traces/rollouts wrote down, with a label.

by: rollouts   the share of `group` continuations from behind the step that come out right (Wang et al. 2023,
               Math-Shepherd, arXiv:2312.08935, section 3.3); a last step is the reply itself, right or wrong
by: worked     1 as long as the reply says what the worked solution of the problem says, line by line, else 0: of
               families whose solutions are written one way

Replies that were cut off are left out. Metrics: how often both ways agree that a step is right (more than none of its
continuations), where solutions are worked. Cost: `group` replies a step, each beginning of a reply once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from stages.lib.frame.errors import UserError
from stages.lib.sampling import rollouts
from stages.lib.store import records
from stages.lib.store.records import Record
from stages.lib.text import chat, duplicates, problems, steps
from stages.traces import Readings
from stages.traces.parts import replies

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

NEEDED = ("liked", "stopped", "tokens", "known")


class Steps(Readings):
    method: Literal["steps"]
    by: Literal["rollouts", "worked"] = "rollouts"
    seed: int = 0
    group: PositiveInt = 4  # continuations of a step
    temperature: PositiveFloat = 1.0
    max_new_tokens: PositiveInt = 64  # of a continuation
    batch_size: PositiveInt = 64  # steps at a time

    def record(self, teacher: "tuple[PreTrainedModel, PreTrainedTokenizerFast]", source: Path) -> Iterator[Record]:
        model, tokenizer = teacher
        rows = replies.load(source, NEEDED)
        rows = [row for row in rows if row["stopped"] and len(steps.of(row["solution"])) == len(ends(tokenizer, row))]
        if not rows:
            raise UserError(f"{source}: no reply in it ended by itself, so none has steps to label")
        known = self.tried(model, tokenizer, rows) if self.by == "rollouts" else {}
        for row in rows:
            if self.by == "worked":
                said = worked(row)
            else:
                said = [*(known[begun] for begun in beginnings(tokenizer, row)), float(row["liked"])]
            yield row | {"steps": said}

    def tried(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", rows: list[Record]
    ) -> dict[tuple[int, ...], float]:
        """Of every beginning the share of its continuations that come out right."""
        said = {begun: (row, text) for row in rows for begun, text in beginnings(tokenizer, row).items()}
        dice, todo, found = np.random.default_rng(self.seed), sorted(said, key=len), dict[tuple[int, ...], float]()
        for first in range(0, len(todo), self.batch_size):
            some = todo[first : first + self.batch_size]
            asked = [(said[begun][0], list(begun)) for begun in some for _ in range(self.group)]
            seed = int(dice.integers(2**62))
            played = rollouts.play(model, tokenizer, asked, self.max_new_tokens, self.temperature, seed)
            for number, begun in enumerate(some):
                row, text = said[begun]
                said_on = played.replies[number * self.group : (number + 1) * self.group]
                problem = {key: value for key, value in row.items() if key != "liked"} | {"solution": row["known"]}
                right = [reply.stopped and problems.correct(problem, text + reply.text) for reply in said_on]
                found[begun] = sum(right) / self.group
        return found

    def measure(self, teacher: object, folder: Path) -> dict[str, float]:
        rows = records.load(folder, "train")
        labels = [label for row in rows for label in row["steps"]]
        agreed = [
            (label > 0) == (other > 0) for row in rows for label, other in zip(row["steps"], worked(row), strict=True)
        ]
        return {
            "steps_per_reply": len(labels) / len(rows),
            "right": sum(label > 0 for label in labels) / len(labels),
            "agreement_with_worked": sum(agreed) / len(agreed),
        }


def ends(tokenizer: "PreTrainedTokenizerFast", row: Record) -> list[int]:
    return steps.ends(tokenizer, row["tokens"])


def beginnings(tokenizer: "PreTrainedTokenizerFast", row: Record) -> dict[tuple[int, ...], str]:
    """Prompt and reply up to every step but the last, in tokens; and that much of the reply."""
    prompt, parts = chat.prompt_ids(tokenizer, row["prompt"]), steps.of(row["solution"])
    return {
        (*prompt, *row["tokens"][: end + 1]): "".join(parts[: number + 1])
        for number, end in enumerate(ends(tokenizer, row)[:-1])
    }


def worked(row: Record) -> list[float]:
    """1 of every step up to the first that the worked solution does not have in its place."""
    said, known = (list(map(duplicates.plain, steps.of(text))) for text in (row["solution"], row["known"]))
    return [float(said[: number + 1] == known[: number + 1]) for number in range(len(said))]
