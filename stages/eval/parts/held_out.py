"""The records that a model is measured on; none of them was in a training split."""

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from stages.lib.frame.errors import UserError
from stages.lib.store import records


class HeldOut(NamedTuple):
    documents: list[records.Record]
    problems: list[records.Record]


def load(documents: Path, problems: Path) -> HeldOut:
    data = HeldOut(records.load(documents, "held_out"), records.load(problems, "held_out"))
    for place, rows in zip((documents, problems), data, strict=True):
        if not rows:
            raise UserError(f"{place / 'held_out.jsonl'} is empty: there is nothing to measure on")
    return data


def start(tokenizer: Any) -> int:
    """The token that a document starts with: BOS, or the end of the one before where a model has no BOS."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def spread(rows: list[Any], number: int) -> list[Any]:
    """At most `number` rows at even distances, so that every source of a sorted file is among them."""
    step = max(1.0, len(rows) / number)
    return [rows[int(i * step)] for i in range(min(number, len(rows)))]


def per_family(problems: list[records.Record], number: int) -> list[records.Record]:
    """The first `number` problems of every family."""
    families = defaultdict(list)
    for problem in problems:
        families[problem["family"]].append(problem)
    return [problem for name in sorted(families) for problem in families[name][:number]]
