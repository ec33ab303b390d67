"""What would run, in which order, and why: dvc.yaml's graph and status, read once through DVC's own API."""

import json
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import recovery
from stages.lib.frame import code, tracking
from stages.lib.frame.errors import UserError

if TYPE_CHECKING:
    from dvc.dependency.base import Dependency
    from dvc.repo import Repo
    from dvc.stage import Stage


CODE = "artifacts/code"  # what the stage `code` makes; the flow brings it up to date itself, for an exact plan


@dataclass(frozen=True)
class Step:
    """One stage of dvc.yaml."""

    name: str
    needs: list[str]  # direct parents
    reasons: list[str]  # why it must rerun; empty: nothing of its own has changed
    upstream: list[str]  # changed stages above it: it reruns if they change what it reads
    code: str  # hash of the code its technique can run, the one that DVC knows
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        return not self.reasons and not self.upstream


def read(targets: Iterable[str] = ()) -> list[Step]:
    """The targets (all stages if none) and what they need, parents first, in the order `dvc repro` takes."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    recovery.mend_memory()
    try:
        with Repo() as repo, lock_repo(repo):
            recovery.repair(repo)
            code.write(Path(repo.root_dir, CODE))
            return list(steps(repo, list(targets)))
    except DvcException as error:
        raise UserError(f"DVC: {error}") from error


def lock() -> dict[str, Any]:
    """The stages that dvc.lock knows."""
    from ruamel.yaml import YAML

    file = Path("dvc.lock")
    return (YAML(typ="safe").load(file) or {}).get("stages", {}) if file.exists() else {}


def outputs() -> dict[str, str]:
    """Path -> DVC's hash of what stages have written, by dvc.lock."""
    return {out["path"]: out["md5"] for stage in lock().values() for out in stage.get("outs", [])}


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
        up_to_date = not why or makes_code(stage)  # the code's files are, whether DVC has recorded them or not
        changed[stage.addressing] = upstream if up_to_date else {stage.addressing}
        yield Step(stage.addressing, needs, why, sorted(upstream), identity(stage), stage.meta or {})


def makes_code(stage: "Stage") -> bool:
    return CODE in [str(out) for out in stage.outs]


def is_code(dep: "Dependency") -> bool:
    return str(dep).startswith(f"{CODE}/")


def identity(stage: "Stage") -> str:
    """The hash of the technique's file under artifacts/code; of what has none, zeros."""
    return next((str(dep.get_hash().value)[:8] for dep in stage.deps if is_code(dep) and dep.exists), "0" * 8)


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
        yield from parameters(dep) if is_parameters(dep) else sources(dep) if is_code(dep) else file(dep, made)
    for out in stage.outs:
        for path, what in out.status().items():
            yield f"output {path} is {'missing' if what == 'deleted' else what}"
    if stage.always_changed and not makes_code(stage):
        yield "it is marked always_changed"


def is_parameters(dep: "Dependency") -> bool:
    from dvc.dependency.param import ParamsDependency

    return isinstance(dep, ParamsDependency)


def parameters(dep: Any) -> Iterator[str]:
    """One line for every leaf that differs from the last run, old -> new."""
    old = tracking.flat(dep.hash_info.value or {})
    new = tracking.flat(dep.read_params())
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            yield f"parameter {key}: {old.get(key, 'unset')} -> {new.get(key, 'unset')}"


def sources(dep: "Dependency") -> Iterator[str]:
    """The source files that differ between a technique's code now and at the stage's last run."""
    if not dep.status():
        return
    if not dep.exists:
        yield f"dvc.yaml names {dep}, and there is no such technique"
        return
    then, now = recorded(dep), json.loads(Path(dep.fs_path).read_text())
    if then is None:
        yield f"its code changed; in which file can't be told, for DVC's cache has no {dep} of the last run"
        return
    for path in sorted({*then, *now}):
        if then.get(path) != now.get(path):
            what = "changed" if path in then and path in now else "is new to it" if path in now else "left it"
            yield f"{path} {what}"


def recorded(dep: "Dependency") -> dict[str, str] | None:
    """A technique's file under artifacts/code as dvc.lock has it, from DVC's cache."""
    if not dep.hash_info or not dep.repo:
        return None
    cached = Path(dep.repo.cache.local.oid_to_path(dep.hash_info.value))
    return json.loads(cached.read_text()) if cached.is_file() else None


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


def explain(plan: list[Step], everything: bool = False) -> str:
    """How many stages rerun; then those, a line for each and for each reason; with `everything` the others too."""
    total = sum(bool(step.reasons) for step in plan), sum(not step.settled for step in plan)
    lines = [f"{total[0]} of {len(plan)} stages rerun, {total[1] - total[0]} more may"]
    for step in (step for step in plan if everything or not step.settled):
        verdict = "reruns" if step.reasons else "may rerun" if step.upstream else "up to date"
        lines.append(f"{step.name}: {verdict}")
        lines += [f"    because {reason}" for reason in step.reasons]
        lines += [f"    because {name} reruns" for name in step.upstream]
    return "\n".join(lines)
