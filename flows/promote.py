"""Candidate to champion, through the gates of params.yaml.

python -m flows.promote     register what lies in artifacts, and promote it or say why not
"""

import sys
from pathlib import Path

from stages.lib import artefacts, gates, params, tracking

ARTIFACTS = Path("artifacts")


def refusals(gate: gates.Gates) -> list[str]:
    """Why the model must not be champion; none: it may."""
    teacher, student = (
        artefacts.read_json(ARTIFACTS / "eval" / name / "metrics.json") for name in (gate.teacher, gate.student)
    )
    return gates.refusals(gate, teacher, student, artefacts.read_json(ARTIFACTS / gate.model / "metrics.json")["kl"])


def offer() -> str:
    """Register the shipped model and its source as candidates; champions if the gates let them. The verdict."""
    tree = params.read()
    gate = gates.read(tree)
    if gate is None:
        return ""
    stage, variant = gate.model.split("/", 1)
    name = f"orchard-{variant}"
    models = {name: gate.model, f"{name}-source": tree[stage][variant]["model"]}
    versions = {each: tracking.register(each, ARTIFACTS / parent / "model", {}) for each, parent in models.items()}
    said = f"{ARTIFACTS / gate.model / 'model'}: {name} version {versions[name]}"
    if reasons := refusals(gate):
        return f"{said} stays candidate: {'; '.join(reasons)}"
    for each, version in versions.items():
        tracking.set_alias(each, "champion", version)
    return f"{said} is champion"


if __name__ == "__main__":
    verdict = offer() or f"{params.PARAMS_FILE} has no gates"
    print(verdict)
    sys.exit(not verdict.endswith("champion"))
