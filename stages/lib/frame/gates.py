"""The gates of params.yaml: what a model must keep, and the most it may weigh, to enter the registry."""

from pathlib import Path
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError

from stages.lib.frame import params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import Exported, Params, Tree


class Gates(Params):
    model: Exported  # the export that is shipped
    teacher: str  # models under eval
    student: str
    accuracy_kept: float = Field(ge=0, le=2)  # student's accuracy over the teacher's
    kl: PositiveFloat  # nats a token, against the model it was made from
    bytes: PositiveInt
    margin: float = Field(0.03, ge=0, lt=1)  # of accuracy: what a new champion may lose on the old one at most (95 %)


def read(tree: Tree, file: Path = params.PARAMS_FILE) -> Gates | None:
    """The gates of params.yaml, if it has any."""
    if "gates" not in tree:
        return None
    try:
        checked = Gates.model_validate(tree["gates"])
    except ValidationError as error:
        raise UserError("\n".join(params.complaint(f"{file}: gates", Gates, each) for each in error.errors())) from None
    params.check_parent(tree, "gates.model", checked.model, file, Exported.stages)
    for key in ("teacher", "student"):
        params.check_evaluated(tree, f"gates.{key}", getattr(checked, key), file)
    return checked


def measured(tree: Tree) -> dict[str, str]:
    """Export -> the name under which eval measures it."""
    return {model: name for name, model in params.models(tree).items() if model.startswith("export/")}


def refusals(gate: Gates, teacher: dict[str, Any], model: dict[str, Any], kl: float) -> list[str]:
    """Why a model must not ship, from the metrics of its evaluation and the teacher's; none: it may."""
    kept = model["accuracy"] / teacher["accuracy"] if teacher["accuracy"] else 0.0
    checks = [
        (kept >= gate.accuracy_kept, f"it keeps {kept:.1%} of the teacher's accuracy; {gate.accuracy_kept:.0%} wanted"),
        (kl <= gate.kl, f"it is {kl:.3g} nats a token from its source; at most {gate.kl:.3g} allowed"),
        (model["bytes"] <= gate.bytes, f"it has {model['bytes']:,} bytes; at most {gate.bytes:,} allowed"),
    ]
    return [reason for passed, reason in checks if not passed]
