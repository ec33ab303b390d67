"""The report over all evaluated models: summary.json (the same everywhere), report.html (with this machine's timings).

python -m stages.report --artifacts artifacts --out artifacts/report [--picture docs/pareto.svg]

It shows the variants that params.yaml names. The teacher is the variant called `teacher`, or else the first under
`eval`; the model that ships is the last. Only the evaluations must exist; what else was not run is left out.
"""

import ast
import csv
from pathlib import Path
from typing import Any

import cyclopts

from stages.lib.frame import files, gates, params
from stages.lib.frame.errors import UserError
from stages.report.parts import distillation, numbers, pictures, proof

HERE = Path(__file__).parent
COPIED = (
    *("parameters", "bytes", "bits_per_weight", "bits_per_byte"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_macro", "num_problems"),
)


def main(*, artifacts: Path = Path("artifacts"), out: Path = Path("artifacts/report"), picture: Path | None = None):
    tree = params.read()
    summary = summarise(tree, artifacts)
    files.write_json(out / "summary.json", summary)

    rows = with_timings(summary["models"], artifacts)
    teacher, shipped = (find(rows, summary[name]) for name in ("teacher", "shipped"))
    write(
        out / "report.html",
        "_report.html.j2",
        rows=rows,
        teacher=teacher,
        shipped=shipped,
        pareto=[pictures.pareto(rows, teacher, shipped, width) for width in (960, 420)],
        costs=pictures.costs(rows, teacher, shipped),
        families=families(rows),
        problems=samples(tree, artifacts, "answers", "prompt", "answer"),
        texts=samples(tree, artifacts, "continuations", "opening", "continuation"),
        stages=stages(tree, artifacts),
        students=students(summary["distilled"], artifacts),
        recordings=recordings(tree, summary["distilled"], artifacts),
        paths={
            path: row | distillation.spent(artifacts, row["links"]) for path, row in summary.get("compare", {}).items()
        },
        unequal=distillation.unequal(summary.get("compare", {})),
        estimated=estimated(tree, artifacts),
        redundancy=redundancy,
    )
    if picture:
        write(picture, "_picture.svg.j2", picture=pictures.pareto(rows, teacher, shipped, 960), standalone=True)


def summarise(tree: dict[str, Any], artifacts: Path) -> dict[str, Any]:
    """What is the same on every machine: of models, of distillations, of paths compared over seeds."""
    entries = tree.get("eval") or {}
    if not entries:
        raise UserError(f"{params.PARAMS_FILE}: eval names no variant, so there is nothing to report")
    measured = {name: files.read_json(artifacts / "eval" / name / "metrics.json") for name in entries}
    teacher = "teacher" if "teacher" in measured else next(iter(measured))
    models = [
        {
            "variant": name,
            "model": entries[name]["model"],
            **relative(metrics, measured[teacher]),
            **proof.against_source(tree, artifacts, name),
        }
        for name, metrics in measured.items()
    ]
    if gate := gates.read(tree):
        for row in models:
            if row["kl"] is not None:
                row["refused"] = gates.refusals(gate, measured[gate.teacher], measured[row["variant"]], row["kl"])
    compared = distillation.compare(tree, models, artifacts)
    return {
        "teacher": teacher,
        "shipped": list(measured)[-1],
        "models": models,
        "distilled": distillation.students(tree, models, artifacts),
        **({"compare": compared} if compared else {}),
    }


def relative(metrics: dict[str, float], teacher: dict[str, float]) -> dict[str, Any]:
    """A model's own metrics and what they are relative to the teacher's."""
    per_family = {key.partition(".")[2]: value for key, value in metrics.items() if key.startswith("accuracy.")}
    return {
        **{key: metrics[key] for key in COPIED},
        "accuracy_kept": metrics["accuracy"] / teacher["accuracy"] if teacher["accuracy"] else None,
        "times_smaller": teacher["bytes"] / metrics["bytes"],
        "families": per_family,
    }


def with_timings(models: list[dict], artifacts: Path) -> list[dict[str, Any]]:
    """Beside the summary's rows, what this machine measured."""
    return [{**row, "timings": optional(artifacts / "eval" / row["variant"] / "timings.json")} for row in models]


def stages(tree: dict[str, Any], artifacts: Path) -> list[dict[str, Any]]:
    """What every variant of every stage did, in the order of the lifecycle."""
    found = []
    for stage in params.STAGES[:-1]:
        for variant, entry in (tree.get(stage) or {}).items():
            folder = artifacts / stage / variant
            if (folder / "metrics.json").is_file():
                found.append({
                    "order": params.STAGES.index(stage),
                    "stage": stage,
                    "variant": variant,
                    "method": entry["method"],
                    "what": summary_of(HERE.parent / stage / f"{entry['method']}.py"),
                    "metrics": files.read_json(folder / "metrics.json"),
                    "timings": optional(folder / "timings.json"),
                    "curve": pictures.curve(read_curve(folder / "curve.csv")),
                })  # fmt: skip
    return found


def students(found: dict[str, dict], artifacts: Path) -> list[dict[str, Any]]:
    """The best first; last what nobody evaluated, the links of a chain."""
    rows = [{"variant": name, **row, **distillation.spent(artifacts, [row["links"]])} for name, row in found.items()]
    return sorted(rows, key=lambda row: -1 if row["accuracy"] is None else row["accuracy"], reverse=True)


def recordings(tree: dict[str, Any], found: dict[str, dict], artifacts: Path) -> dict[str, dict[str, float]]:
    """What this machine spent on the traces that these students learnt from."""
    used = dict.fromkeys(tree["distill"][variant]["traces"] for variant in found)
    return {name: distillation.timings(artifacts, name) for name in used if name.startswith("traces/")}


def estimated(tree: dict[str, Any], artifacts: Path) -> bool:
    """Whether any stage's joules are an estimate."""
    return any(
        distillation.timings(artifacts, f"{stage}/{variant}").get("energy_measured") == 0
        for stage in params.STAGES
        for variant in tree.get(stage) or {}
    )


def redundancy(metrics: dict[str, Any]) -> dict[str, list[float]]:
    """Where a technique tells it: kind of layer -> its redundant share in every block."""
    shares = metrics.get("redundancy", {})
    kinds: dict[str, list[float]] = {}
    for name in sorted(shares, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()]):
        kinds.setdefault(name.rpartition(".")[2], []).append(shares[name])
    return kinds


def summary_of(technique: Path) -> str:
    """The first paragraph of a technique's docstring."""
    docstring = ast.get_docstring(ast.parse(technique.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def read_curve(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The losses of a curve.csv: name -> (step, value) pairs."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    losses = [name for name in (table[0] if table else ()) if "loss" in name]
    return {name: [(float(row["step"]), float(row[name])) for row in table if row[name]] for name in losses}


def families(rows: list[dict]) -> list[str]:
    return sorted({family for row in rows for family in row["families"]})


def samples(tree: dict[str, Any], artifacts: Path, kind: str, asked: str, answer: str) -> list[dict[str, Any]]:
    """Every question, or opening, once; under it what was said and by which models."""
    groups: dict[str, dict[str, Any]] = {}
    for variant in tree["eval"]:
        for each in optional(artifacts / "eval" / variant / "samples.json").get(kind, []):
            group = groups.setdefault(each[asked], {**each, "asked": each[asked], "said": {}})
            group["said"].setdefault((each[answer], each.get("correct")), []).append(variant)
    return list(groups.values())


def optional(path: Path) -> dict[str, Any]:
    return files.read_json(path) if path.is_file() else {}


def find(rows: list[dict], variant: str) -> dict[str, Any]:
    return next(row for row in rows if row["variant"] == variant)


def write(path: Path, template: str, **values: Any) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= numbers.FILTERS
    text = environment.get_template(template).render(**values)
    with files.writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cyclopts.run(main)
