"""Candidate to champion, through the gates of params.yaml.

python -m flows.promote     register what lies in artifacts, and promote it or say why not
"""

import sys
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from stages.lib import artefacts, params, tracking
from stages.lib.params import Params, Parent

ARTIFACTS = Path("artifacts")


class Gates(Params):
    """params.yaml: gates. What the final model must keep of its teacher, and the most it may weigh."""

    model: Parent  # the export that is shipped
    teacher: str  # eval variants
    student: str
    accuracy_kept: float = Field(ge=0, le=2)  # student's accuracy over the teacher's
    kl: PositiveFloat  # nats a token, against the model it was exported from
    bytes: PositiveInt


def gates(tree: dict[str, Any]) -> Gates | None:
    """The gates of params.yaml, if it has any."""
    if "gates" not in tree:
        return None
    try:
        checked = Gates.model_validate(tree["gates"])
    except ValidationError as error:
        place = f"{params.PARAMS_FILE}: gates"
        raise SystemExit("\n".join(params.complaint(place, Gates, each) for each in error.errors())) from None
    params.check_parent(tree, "gates.model", checked.model)
    for key in ("teacher", "student"):
        params.check_parent(tree, f"gates.{key}", f"eval/{getattr(checked, key)}")
    return checked


def refusals(gate: Gates) -> list[str]:
    """Why the model must not be champion; none: it may."""
    teacher, student = (
        artefacts.read_json(ARTIFACTS / "eval" / name / "metrics.json") for name in (gate.teacher, gate.student)
    )
    kl = artefacts.read_json(ARTIFACTS / gate.model / "metrics.json")["kl"]
    kept = student["accuracy"] / teacher["accuracy"] if teacher["accuracy"] else 0.0
    checks = [
        (kept >= gate.accuracy_kept, f"it keeps {kept:.1%} of the teacher's accuracy; {gate.accuracy_kept:.0%} wanted"),
        (kl <= gate.kl, f"it is {kl:.3g} nats a token from its source; at most {gate.kl:.3g} allowed"),
        (student["bytes"] <= gate.bytes, f"it has {student['bytes']:,} bytes; at most {gate.bytes:,} allowed"),
    ]
    return [reason for passed, reason in checks if not passed]


def offer() -> str:
    """Register the shipped model and its source as candidates; champions if the gates let them. The verdict."""
    tree = params.read()
    gate = gates(tree)
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
