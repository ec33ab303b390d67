"""From a model back to the raw data, by content hash: across runs, and through stages that were cached.

python -m flows.lineage orchard-gguf-q4_k_m            a registered model (its candidate; name@champion: that alias)
python -m flows.lineage export/gguf-q4_k_m             a variant
python -m flows.lineage artifacts/align/dpo/model      an artefact
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from flows import plan
from flows.plan import CODE
from stages.lib.frame import files, tracking
from stages.lib.frame.errors import UserError, command

ARTIFACTS = Path("artifacts")


def find(model: str) -> tuple[Path, str]:
    """Path and sha256 of what the user named."""
    if Path(model).exists():
        return Path(model), files.digest(Path(model))
    if (folder := ARTIFACTS / model).is_dir():
        made = [path for path in sorted(folder.iterdir()) if path.is_dir()] or [folder / "metrics.json"]
        return made[0], files.digest(made[0])
    name, _, alias = model.partition("@")
    if found := tracking.registered(name, alias or "candidate"):
        return found[1], found[2]
    raise UserError(f"'{model}' is no registered model, no variant under {ARTIFACTS} and no path")


def tree(path: Path, sha256: str, seen: set[str], indent: str = "") -> Iterator[str]:
    """The artefact, who made it, then the same for each of its inputs; one that was shown is only named again."""
    yield f"{indent}{path}  sha256 {sha256[:12]}{'  (see above)' if sha256 in seen else ''}"
    if sha256 in seen:
        return
    seen.add(sha256)
    inner = f"{indent}    "
    if run := tracking.producer(path, sha256):
        yield f"{inner}made by {run.stage}/{run.variant}, run {run.id[:8]}, git {commit(run.git)}{values(run.params)}"
        yield f"{inner}code {run.code[:12]}"
        inputs = [(Path(name), content) for name, content in run.inputs]
    elif entry := locked(path):
        yield f"{inner}made by {entry['name']}; no run of it is recorded here, so this is from dvc.lock"
        inputs = [(each, files.digest(each)) for each in map(Path, entry["inputs"]) if each.exists()]
    else:
        yield f"{inner}raw: no stage makes it"
        return
    for parent, content in inputs:
        yield from tree(parent, content, seen, inner)


def commit(revision: str) -> str:
    return revision if revision == "no git" else f"{revision[:7]}{revision[40:]}"


def values(params: dict[str, str]) -> str:
    shown = ", ".join(f"{key}={value}" for key, value in sorted(params.items()) if value not in ("None", ""))
    return f", {shown}" if shown else ""


def locked(path: Path) -> dict[str, Any] | None:
    """The stage of dvc.lock that makes `path`, with what it reads; code is left out."""
    for name, entry in lock().items():
        if str(path) in [out["path"] for out in entry.get("outs", [])]:
            inputs = [dep["path"] for dep in entry.get("deps", []) if not dep["path"].startswith(f"{CODE}/")]
            return {"name": name, "inputs": inputs}
    return None


lock = cache(plan.lock)


def main(model: str) -> None:
    print("\n".join(tree(*find(model), set())))


if __name__ == "__main__":
    command(main)
