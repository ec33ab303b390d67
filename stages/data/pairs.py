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

from stages.data import Source
from stages.lib.store import records
from stages.lib.text import problems


class Params(Source):
    method: Literal["pairs"]
    per_family: PositiveInt  # of the training problems; held-out ones in proportion


def read(source: Path, p: Params) -> Iterator[records.Record]:
    for split in ("train", "held_out"):
        by_family: dict[str, list[records.Record]] = defaultdict(list)
        for problem in records.load(source, split):
            by_family[problem["family"]].append(problem)
        share = 1.0 if split == "train" else p.held_out
        for rows in by_family.values():
            for problem in rows[: max(1, round(p.per_family * share))]:
                yield from pair(problem, rows, split, p.seed)


def pair(problem: records.Record, others: list[records.Record], split: str, seed: int) -> Iterator[records.Record]:
    """One pair, or none where eight draws find no wrong answer (a family with two answers, all but one the same)."""
    draw = random.Random(f"{seed}/{problem['id']}")
    working = problem["solution"].rpartition(problems.MARK)[0]
    for other in draw.choices(others, k=8):
        rejected = f"{working}{problems.MARK} {other['answer']}"
        if not problems.correct(problem, rejected):
            kept = {key: problem[key] for key in ("id", "family", "prompt")}
            yield kept | {"chosen": problem["solution"], "rejected": rejected, "split": split}
            return
