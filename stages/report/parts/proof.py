"""What a model lost against the one it was made from.

Flips: the share of problems that one of the two answers right and the other doesn't. Accuracy alone hides those that
cancel out (Dutta et al. 2024, arXiv:2407.09141, section 3).
"""

from pathlib import Path
from typing import Any

from stages.lib.frame import files

COMPRESSING = ("prune", "quantize", "export")


def against_source(tree: dict[str, Any], artifacts: Path, variant: str) -> dict[str, Any]:
    """kl, same_top and flips of an evaluated model against its source; none for one that was trained."""
    model = tree["eval"][variant]["model"]
    stage, name = model.split("/", 1)
    if stage not in COMPRESSING:
        return {"kl": None, "same_top": None, "flips": None}
    path = artifacts / model / "metrics.json"
    made = files.read_json(path) if path.is_file() else {}
    source = tree[stage][name].get("model")
    evaluated = next((other for other, entry in tree["eval"].items() if entry["model"] == source), None)
    flipped = flips(right(artifacts, evaluated), right(artifacts, variant)) if evaluated else None
    return {"kl": made.get("kl"), "same_top": made.get("same_top"), "flips": flipped}


def right(artifacts: Path, variant: str) -> dict[str, bool]:
    """Every problem that a model was asked -> whether its answer was right."""
    return files.read_json(artifacts / "eval" / variant / "samples.json")["right"]


def flips(before: dict[str, bool], after: dict[str, bool]) -> float | None:
    """None if the two were not asked the same."""
    if before.keys() != after.keys():
        return None
    return sum(before[problem] != after[problem] for problem in before) / len(before)
