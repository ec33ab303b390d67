"""Preference pairs from problems: two replies to one prompt, ranked by the task's own score.

Chosen is the worked solution; rejected is the same working with another problem's answer, kept only if the scorer gives
it less. So what separates the two is being right, not style (Lambert et al. 2024, arXiv:2411.15124, section 5).
"""

import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from stages.data import Dataset
from stages.lib.store.records import Record, load
from stages.lib.text import problems


class Pairs(Dataset):
    method: Literal["pairs"]
    per_family: PositiveInt  # of the training problems; held-out ones in proportion

    def records(self, source: Path) -> Iterator[Record]:
        for split in ("train", "held_out"):
            by_family: dict[str, list[Record]] = defaultdict(list)
            for problem in load(source, split):
                by_family[problem["family"]].append(problem)
            share = 1.0 if split == "train" else self.held_out
            for rows in by_family.values():
                for problem in rows[: max(1, round(self.per_family * share))]:
                    yield from pair(problem, rows, split, self.seed)


def pair(problem: Record, others: list[Record], split: str, seed: int) -> Iterator[Record]:
    """One pair, or none where eight draws find no wrong answer (a family with two answers, all but one the same)."""
    draw = random.Random(f"{seed}/{problem['id']}")
    working = problems.steps(problem["solution"])
    for other in draw.choices(others, k=8):
        rejected = problems.solution(working, other["answer"])
        if not problems.correct(problem, rejected):
            kept = {key: problem[key] for key in ("id", "family", "prompt")}
            yield kept | {"chosen": problem["solution"], "rejected": rejected, "split": split}
            return
