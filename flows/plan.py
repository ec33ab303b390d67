"""What would run, in which order, and why: dvc.yaml's graph and status, read once through DVC's own API."""

import hashlib
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import recovery
from stages.lib.frame import tracking
from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from dvc.dependency.base import Dependency
    from dvc.repo import Repo
    from dvc.stage import Stage


@dataclass(frozen=True)
class Step:
    """One stage of dvc.yaml."""

    name: str
    needs: list[str]  # direct parents
    reasons: list[str]  # why it must rerun; empty: nothing of its own has changed
    upstream: list[str]  # changed stages above it: it reruns if they change what it reads
    code: str  # hash of the files it depends on that no stage makes
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        return not self.reasons and not self.upstream


def read(targets: Iterable[str] = ()) -> list[Step]:
    """The targets (all stages if none) and what they need, parents first, in the order `dvc repro` takes."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    try:
        with Repo() as repo, lock_repo(repo):
            recovery.repair(repo)
            return list(steps(repo, list(targets)))
    except DvcException as error:
        raise UserError(f"DVC: {error}") from error


def sort_lock() -> None:
    """Give dvc.lock the order that a serial `dvc repro` writes, whatever order parallel stages ended in."""
    from dvc.repo import Repo, lock_repo
    from dvc.repo.reproduce import plan_repro

    with Repo() as repo, lock_repo(repo):
        recovery.sort(Path(repo.root_dir, "dvc.lock"), [stage.addressing for stage in plan_repro(repo.index.graph)])


def steps(repo: "Repo", targets: list[str]) -> Iterator[Step]:
    from dvc.repo.reproduce import plan_repro

    graph = repo.index.graph
    wanted = [stage for target in targets for stage in find(target, graph)]
    made = {str(out) for stage in graph for out in stage.outs}
    open_empty(graph, Path(repo.root_dir))
    changed: dict[str, set[str]] = {}  # stage -> changed stages at or above it
    for stage in plan_repro(graph, wanted or None):
        needs = sorted(parent.addressing for parent in graph.successors(stage))
        upstream = set().union(*(changed[parent] for parent in needs))
        why = list(reasons(stage, made))
        changed[stage.addressing] = {stage.addressing} if why else upstream
        code = hashlib.sha256("".join(hashes(stage, made)).encode()).hexdigest()[:8]
        yield Step(stage.addressing, needs, why, sorted(upstream), code, stage.meta or {})


def open_empty(graph: Iterable["Stage"], root: Path) -> None:
    """The folder of a stage without variants (`align: {}`) is empty; to DVC it would be missing."""
    made = {Path(out.fs_path) for stage in graph for out in stage.outs}
    read = {Path(dep.fs_path) for stage in graph for dep in stage.deps}
    around = {parent for out in made for parent in out.parents if root in parent.parents}
    for folder in read - made - around:
        if folder.parent in around:
            folder.mkdir(parents=True, exist_ok=True)


def find(target: str, graph: Iterable["Stage"]) -> list["Stage"]:
    """A stage by name; a group of variants by the name before "@"."""
    if found := [stage for stage in graph if target in (stage.addressing, stage.addressing.split("@")[0])]:
        return found
    names = [stage.addressing for stage in graph]
    hint = get_close_matches(target, names, n=3) or sorted({name.split("@")[0] for name in names})
    raise UserError(f"dvc.yaml has no stage '{target}'; there are: {', '.join(hint)}")


def reasons(stage: "Stage", made: set[str]) -> Iterator[str]:
    if not any(out.hash_info for out in stage.outs) and not any(dep.hash_info for dep in stage.deps):
        yield "it never ran"
        return
    if stage.changed_stage():
        yield "its command in dvc.yaml changed"
    for dep in stage.deps:
        yield from parameters(dep) if hasattr(dep, "params") else file(dep, made)
    for out in stage.outs:
        for path, what in out.status().items():
            yield f"output {path} is {'missing' if what == 'deleted' else what}"
    if stage.always_changed:
        yield "it is marked always_changed"


def parameters(dep: Any) -> Iterator[str]:
    """One line for every leaf that differs from the last run, old -> new."""
    old = tracking.flat(dep.hash_info.value or {})
    new = tracking.flat(dep.read_params())
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"parameter {key}: {old.get(key, 'unset')} -> {new.get(key, 'unset')}"


def file(dep: "Dependency", made: set[str]) -> Iterator[str]:
    for path, what in dep.status().items():
        if what == "deleted":
            yield f"{'artefact' if path in made else 'file'} {path} is missing"
        elif path in made:
            yield f"artefact {path} changed"
        else:
            yield f"file {path} {'is new to it' if what == 'new' else 'changed'}{uncommitted(path)}"


def uncommitted(folder: str) -> str:
    """Which files of a changed folder git sees as edited: DVC keeps only one hash for a folder of code."""
    git = ["git", "status", "--porcelain", "--", folder]
    lines = subprocess.run(git, capture_output=True, text=True).stdout.splitlines()
    edited = [name for line in lines if (name := line[3:]) != folder]
    return f" (uncommitted: {', '.join(edited)})" if edited else ""


def hashes(stage: "Stage", made: set[str]) -> Iterator[str]:
    for dep in stage.deps:
        if not hasattr(dep, "params") and str(dep) not in made and dep.exists:
            yield f"{dep} {dep.get_hash().value}\n"


def explain(plan: list[Step]) -> str:
    """One line a stage, and one a reason."""
    lines = []
    for step in plan:
        verdict = "reruns" if step.reasons else "may rerun" if step.upstream else "up to date"
        lines.append(f"{step.name}: {verdict}")
        lines += [f"    because {reason}" for reason in step.reasons]
        lines += [f"    because {name} reruns" for name in step.upstream]
    total = sum(bool(step.reasons) for step in plan), sum(not step.settled for step in plan)
    return "\n".join([*lines, f"{total[0]} of {len(plan)} stages rerun, {total[1] - total[0]} more may"])
