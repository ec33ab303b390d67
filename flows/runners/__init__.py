"""Where a stage runs: on this machine, or on one of a cluster that shares nothing with it but DVC's remote.

`meta: {runner: {on: ray, gpus: 1}}` in dvc.yaml says it of a stage, `runners: {pretrain: {on: ray, gpus: 1}}` in
params.yaml, and so in a profile, of a stage or one variant (`pretrain@teacher`), and overrules the former. Whatever
neither names runs here. One file a runner; its class has the fields that may stand there.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from flows.plan import Step
from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Params, Tree

SECTION = "runners"  # of params.yaml
RUNNERS = ("local", "ray", "slurm", "kubernetes")


class Runner(Params):
    """The way to a machine, and how much of it a stage needs."""

    on: str
    cpus: PositiveInt = 1
    gpus: NonNegativeInt = 0
    memory: PositiveFloat = 4  # GB

    def require(self) -> None:
        """Refuse, before any work, what can't be had."""

    def reproduce(self, step: Step, environment: dict[str, str], tell: Callable[[bytes], None]) -> str | None:
        """As flows.warm.reproduce: the state that the stage ends in, None if it fails."""
        raise NotImplementedError


def of(step: Step, tree: Tree) -> Runner:
    """The runner of a stage, by its own entry, its group's or dvc.yaml's, else this machine."""
    named, group = entries(tree), step.name.split("@")[0]
    places = [
        (f"{params.PARAMS_FILE}: {SECTION}.{step.name}", named.get(step.name)),
        (f"{params.PARAMS_FILE}: {SECTION}.{group}", named.get(group)),
        (f"dvc.yaml: {group}.meta.runner", step.meta.get("runner")),
    ]
    return next((read(place, entry) for place, entry in places if entry is not None), read("", {"on": "local"}))


def entries(tree: Tree) -> Mapping[str, Any]:
    params.check_mapping(f"{params.PARAMS_FILE}: {SECTION}", named := tree.get(SECTION, {}))
    return named


def read(place: str, entry: Any) -> Runner:
    on = entry.get("on") if isinstance(entry, Mapping) else None
    if on not in RUNNERS:
        raise UserError(f"{place} is {entry!r}; it needs an `on`, which may be: {params.names(RUNNERS)}")
    kind: type[Runner] = getattr(import_module(f"{__name__}.{on}"), on.capitalize())
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        raise UserError("\n".join(params.complaint(place, kind, wrong) for wrong in error.errors())) from None


def check(steps: list[Step], tree: Tree) -> None:
    """Refuse wrong entries, and stages that may run where they can't have what they need."""
    runners = {repr(runner): runner for step in steps if not step.settled for runner in [of(step, tree)]}
    for runner in runners.values():
        runner.require()
