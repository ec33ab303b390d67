"""The model registry and its gates: params.yaml says what an export must keep to be registered.

python -m flows.promote     register what lies in artifacts, or say why not

Every evaluated export that passes is registered as candidate; the one that ships, and its source, also as champion.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.lib.frame import files, gates, params, tracking
from stages.lib.frame.errors import command
from stages.lib.frame.params import Tree

ARTIFACTS = Path("artifacts")


@dataclass(frozen=True)
class Verdict:
    """What the gates say to one export."""

    export: str
    name: str  # under which eval measures it
    standing: Literal["champion", "candidate", "refused"]
    reasons: list[str]  # why it is refused


def judge(tree: Tree) -> list[Verdict]:
    """A verdict on every export that was made and evaluated, the one that ships last."""
    gate = gates.read(tree)
    if gate is None or not measured(tree, gate.teacher):
        return []
    exports = gates.measured(tree)
    exports.pop(gate.model, None)
    exports[gate.model] = gate.student
    found = []
    for export, name in ((export, name) for export, name in exports.items() if made(export) and measured(tree, name)):
        teacher, student = evaluated(tree, gate.teacher), evaluated(tree, name)
        reasons = gates.refusals(gate, teacher, student, kl(export))
        standing = "refused" if reasons else "champion" if export == gate.model else "candidate"
        found.append(Verdict(export, name, standing, reasons))
    return found


def offer() -> list[str]:
    """Register what the gates let pass; a line for every export."""
    tree = params.read()
    return [admit(tree, verdict) for verdict in judge(tree)]


def admit(tree: Tree, verdict: Verdict) -> str:
    export, standing = verdict.export, verdict.standing
    if standing == "refused":
        return f"{export} is refused: {'; '.join(verdict.reasons)}"
    stage, variant = export.split("/", 1)
    name, accuracy = f"orchard-{variant}", evaluated(tree, verdict.name)["accuracy"]
    version = register(name, export, {"kl": f"{kl(export):.4g}", "accuracy": f"{accuracy:.4g}"})
    if standing == "champion":
        source = register(f"{name}-source", tree[stage][variant]["model"], {})
        tracking.set_alias(name, "champion", version)
        tracking.set_alias(f"{name}-source", "champion", source)
    return f"{export} is {standing}: {name} version {version}"


def kl(export: str) -> float:
    return files.read_json(ARTIFACTS / export / "metrics.json")["kl"]


def made(variant: str) -> bool:
    """A flow may have had other targets."""
    return (ARTIFACTS / variant / "metrics.json").is_file()


def measured(tree: Tree, name: str) -> bool:
    """Whether a model has been put to every measure."""
    return all(made(f"eval/{name}/{measure}") for measure in params.variants(tree, "eval"))


def evaluated(tree: Tree, name: str, file: str = "metrics.json") -> dict[str, Any]:
    """What eval says of a model, the numbers of all its measures; no two measures use one name."""
    places = [ARTIFACTS / "eval" / name / measure / file for measure in params.variants(tree, "eval")]
    return {key: value for place in places if place.is_file() for key, value in files.read_json(place).items()}


def register(name: str, model: str, tags: dict[str, str]) -> str:
    return tracking.register(name, ARTIFACTS / model / "model", tags)


def main() -> None:
    verdicts = judge(params.read())
    print("\n".join(offer() or [f"{params.PARAMS_FILE} has no gates, or nothing was evaluated yet"]))
    sys.exit(not verdicts or verdicts[-1].standing != "champion")


if __name__ == "__main__":
    command(main)
