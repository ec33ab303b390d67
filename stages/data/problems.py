"""Problems with one right answer, from reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760).

Each family's worked solution, where it has one, is written by the function of its name in the source file
(stages/data/parts/worked.py); the others answer at once. Solutions end in "#### answer".
"""

import random
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from stages.data import Dataset
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record
from stages.lib.text import problems


class Problems(Dataset):
    method: Literal["problems"]
    families: dict[str, dict[str, Any]] = Field(min_length=1)  # family -> reasoning-gym's settings of its difficulty
    per_family: PositiveInt

    def records(self, source: Path) -> Iterator[Record]:
        worked = import_module(".".join(source.with_suffix("").parts))
        for family, settings in self.families.items():
            for number, entry in enumerate(generate(family, settings, self.per_family, self.seed)):
                steps = getattr(worked, family, direct)(entry)
                yield {
                    "id": f"{family}/{number}",
                    "family": family,
                    "prompt": entry["question"],
                    "answer": entry["answer"],
                    "solution": problems.solution(steps, entry["answer"]),
                    "entry": {key: entry[key] for key in ("question", "answer", "metadata")},
                }


def generate(family: str, settings: dict[str, Any], count: int, seed: int) -> Iterator[dict[str, Any]]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if family not in DATASETS:
        raise UserError(f"reasoning-gym has no family '{family}'; it has: {', '.join(sorted(DATASETS))}")
    random.seed(seed)  # a few families draw from the global generator
    try:
        yield from reasoning_gym.create_dataset(family, size=count, seed=seed, **settings)
    except (TypeError, AssertionError) as error:
        raise UserError(f"reasoning-gym's family '{family}' cannot be made with {settings}: {error}") from error


def direct(_entry: dict[str, Any]) -> str:
    return ""
