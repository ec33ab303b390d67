"""summary.json: what is the same on every machine, of models, of distillations and of paths compared over seeds."""

from pathlib import Path
from typing import Any

from stages.lib.frame import gates, params
from stages.lib.frame.errors import UserError
from stages.lib.frame.gates import Gates
from stages.lib.frame.params import Tree
from stages.report.parts import distillation, evaluated, proof

COPIED = (
    *("parameters", "bytes", "bits_per_weight", "bits_per_byte"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_macro", "num_problems"),
)


def summarise(tree: Tree, artifacts: Path) -> dict[str, Any]:
    models = params.models(tree)
    if not models:
        raise UserError(f"{params.PARAMS_FILE}: eval.{params.MODELS} is empty, so there is nothing to report")
    gate = gates.read(tree)
    measured = {name: evaluated.read(tree, artifacts, name) for name in models}
    teacher = gate.teacher if gate else "teacher" if "teacher" in models else next(iter(models))
    rows = [
        {
            "variant": name,
            "model": models[name],
            **relative(metrics, measured[teacher]),
            **proof.against_source(tree, artifacts, name),
        }
        for name, metrics in measured.items()
    ]
    if gate:
        rows = [row | verdict(gate, measured[teacher], row) for row in rows]
    compared = distillation.compare(tree, rows, artifacts)
    return {
        "teacher": teacher,
        "shipped": gate.student if gate else list(models)[-1],
        "models": rows,
        "distilled": distillation.students(tree, rows, artifacts),
        **({"compare": compared} if compared else {}),
    }


def relative(metrics: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Any]:
    """A model's own metrics and what they are relative to the teacher's; None where either was not measured."""
    per_family = {key.partition(".")[2]: value for key, value in metrics.items() if key.startswith("accuracy.")}
    return {
        **{key: metrics.get(key) for key in COPIED},
        "accuracy_kept": ratio(metrics.get("accuracy"), teacher.get("accuracy")),
        "times_smaller": ratio(teacher.get("bytes"), metrics.get("bytes")),
        "families": per_family,
        "other": {key: value for key, value in metrics.items() if key not in COPIED and "." not in key},
    }


def ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other


def verdict(gate: Gates, teacher: dict[str, Any], row: dict[str, Any]) -> dict[str, list[str]]:
    """Why the gates refuse a compressed model, no reason if they don't; nothing where they can't tell."""
    known = None not in (row["accuracy"], row["bytes"], row["kl"], teacher.get("accuracy"))
    return {"refused": gates.refusals(gate, teacher, row, row["kl"])} if known else {}
