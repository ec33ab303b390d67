"""What a model lost against the one it was made from.

Flips: the share of problems that one of the two answers right and the other doesn't. Accuracy alone hides those that
cancel out (Dutta et al. 2024, arXiv:2407.09141, section 3).
"""

from pathlib import Path
from typing import Any

from stages.lib.frame import params
from stages.lib.frame.params import Tree
from stages.report.parts import evaluated

COMPRESSING = ("prune", "quantize", "export")


def against_source(tree: Tree, artifacts: Path, name: str) -> dict[str, Any]:
    """kl, same_top and flips of an evaluated model against its source; none for one that was trained."""
    models = params.models(tree)
    stage, variant = models[name].split("/", 1)
    if stage not in COMPRESSING:
        return {"kl": None, "same_top": None, "flips": None}
    made = evaluated.optional(artifacts / models[name] / "metrics.json")
    source = params.variants(tree, stage)[variant].get("model")
    before = next((other for other, model in models.items() if model == source), None)
    flipped = flips(right(tree, artifacts, before), right(tree, artifacts, name)) if before else None
    return {"kl": made.get("kl"), "same_top": made.get("same_top"), "flips": flipped}


def right(tree: Tree, artifacts: Path, name: str) -> dict[str, bool]:
    """Every problem that a model was asked -> whether its answer was right."""
    return evaluated.read(tree, artifacts, name, "samples.json").get("right", {})


def flips(before: dict[str, bool], after: dict[str, bool]) -> float | None:
    """None if the two were not asked the same."""
    if not before or before.keys() != after.keys():
        return None
    return sum(before[problem] != after[problem] for problem in before) / len(before)
