"""The door of the model registry: an export that the gates of params.yaml refuse stays outside.

python -m flows.promote     register what lies in artifacts, or say why not

Every evaluated export that passes is registered as candidate; the one that ships, and its source, also as champion.
"""

import sys
from pathlib import Path
from typing import Any

from stages.lib.frame import files, gates, params, tracking

ARTIFACTS = Path("artifacts")


def offer() -> list[str]:
    """A verdict for every export that was made and evaluated, the one that ships last."""
    tree = params.read()
    gate = gates.read(tree)
    if gate is None or not made(f"eval/{gate.teacher}"):
        return []
    exports = gates.measured(tree)
    exports.pop(gate.model, None)
    exports[gate.model] = gate.student
    return [admit(tree, gate, each, name) for each, name in exports.items() if made(each) and made(f"eval/{name}")]


def admit(tree: dict[str, Any], gate: gates.Gates, export: str, evaluated: str) -> str:
    teacher, student = (metrics(f"eval/{name}") for name in (gate.teacher, evaluated))
    kl = metrics(export)["kl"]
    if reasons := gates.refusals(gate, teacher, student, kl):
        return f"{export} stays out of the registry: {'; '.join(reasons)}"
    stage, variant = export.split("/", 1)
    name = f"orchard-{variant}"
    version = register(name, export, {"kl": f"{kl:.4g}", "accuracy": f"{student['accuracy']:.4g}"})
    if export != gate.model:
        return f"{export} is candidate: {name} version {version}"
    source = register(f"{name}-source", tree[stage][variant]["model"], {})
    tracking.set_alias(name, "champion", version)
    tracking.set_alias(f"{name}-source", "champion", source)
    return f"{export} is champion: {name} version {version}"


def made(variant: str) -> bool:
    """A flow may have had other targets."""
    return (ARTIFACTS / variant / "metrics.json").is_file()


def metrics(variant: str) -> dict[str, Any]:
    return files.read_json(ARTIFACTS / variant / "metrics.json")


def register(name: str, model: str, tags: dict[str, str]) -> str:
    return tracking.register(name, ARTIFACTS / model / "model", tags)


if __name__ == "__main__":
    verdicts = offer() or [f"{params.PARAMS_FILE} has no gates, or nothing was evaluated yet"]
    print("\n".join(verdicts))
    sys.exit(" is champion: " not in verdicts[-1])
