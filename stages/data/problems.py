"""Problems with one right answer, from reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760).

Each family's worked solution, where it has one, is written by the function of its name in the source file
(stages/data/parts/worked.py); the others answer at once. Solutions end in "#### answer".
"""

import random
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from stages.data import Source
from stages.lib.frame.errors import UserError
from stages.lib.store.records import Record
from stages.lib.text.problems import MARK


class Params(Source):
    method: Literal["problems"]
    families: dict[str, dict[str, Any]]  # family -> reasoning-gym's settings for its difficulty
    per_family: PositiveInt


def read(source: Path, p: Params) -> Iterator[Record]:
    solve = import_module(".".join(source.with_suffix("").parts))
    for family, settings in p.families.items():
        for number, entry in enumerate(generate(family, settings, p)):
            steps = getattr(solve, family, direct)(entry)
            yield {
                "id": f"{family}/{number}",
                "family": family,
                "prompt": entry["question"],
                "answer": entry["answer"],
                "solution": f"{steps}{MARK} {entry['answer']}",
                "entry": {key: entry[key] for key in ("question", "answer", "metadata")},
            }


def generate(family: str, settings: dict[str, Any], p: Params) -> Iterator[dict[str, Any]]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if family not in DATASETS:
        raise UserError(f"params.yaml: reasoning-gym has no '{family}'; it has: {', '.join(sorted(DATASETS))}")
    random.seed(p.seed)  # a few families draw from the global generator
    try:
        yield from reasoning_gym.create_dataset(family, size=p.per_family, seed=p.seed, **settings)
    except (TypeError, AssertionError) as error:
        raise UserError(f"params.yaml: family '{family}' cannot be made with {settings}: {error}") from error


def direct(_entry: dict[str, Any]) -> str:
    return ""
