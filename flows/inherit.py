"""A parent `champion/NAME` in params.yaml: training goes on from the champion of the registered model NAME.

Its files lie where any parent's would. Only `python -m flows.retrain` takes a newer champion: a run that has just made
one would otherwise begin again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows import versions
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import CHAMPION, Tree

PLACE = Path("artifacts") / CHAMPION


def provide(tree: Tree, renew: bool = False) -> None:
    """Put the files there that are named and are missing, or with `renew` are an earlier champion's."""
    for name in sorted(set(named(tree))):
        target = PLACE / name / "model"
        if target.exists() and not renew:
            continue
        if not (standing := versions.champions(name)):
            raise UserError(f"{CHAMPION}/{name}: {name} has no champion yet; begin with another model until it has")
        if not target.exists() or files.digest(target) != standing[-1].sha256:
            files.remove(target)
            versions.fetch(standing[-1], target)


def named(tree: Tree) -> Iterator[str]:
    for stage in params.STAGES:
        for entry in params.variants(tree, stage).values():
            yield from (value.split("/")[1] for value in strings(entry) if value.startswith(f"{CHAMPION}/"))


def strings(entry: Any) -> Iterator[str]:
    return (value for value in entry.values() if isinstance(value, str)) if isinstance(entry, dict) else iter(())
