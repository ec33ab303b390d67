"""What eval says of a model: the files of all its measures, read as one. No two measures use one name."""

from pathlib import Path
from typing import Any

from stages.lib.frame import files, params
from stages.lib.frame.params import Tree


def read(tree: Tree, artifacts: Path, name: str, file: str = "metrics.json") -> dict[str, Any]:
    """Of the model that eval.models calls `name`; what was not measured is missing."""
    found: dict[str, Any] = {}
    for measure in params.variants(tree, "eval"):
        found |= optional(artifacts / "eval" / name / measure / file)
    return found


def optional(path: Path) -> dict[str, Any]:
    """Of a stage that was perhaps not run, or not on this machine."""
    return files.read_json(path) if path.is_file() else {}
