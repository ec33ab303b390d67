"""report.html: one file that needs nothing but a browser. Its charts are drawn by Vega, which it carries along.

The page may load nothing, and runs no script but its own: its content security policy names the hash of that one.
"""

import ast
import base64
import csv
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert

from stages.lib.frame import files, params
from stages.lib.frame.params import Tree
from stages.report.parts import charts, distillation, evaluated, numbers

READS = ("report.html.j2", "report.css", "report.js", "colours.css")
HERE = Path(__file__).parent
STAGES = HERE.parents[1]

Row = dict[str, Any]


def with_timings(tree: Tree, artifacts: Path, summary: dict[str, Any]) -> list[Row]:
    """The summary's models with what this machine measured of them, and their role."""
    roles = {summary["teacher"]: "teacher", summary["shipped"]: "shipped"}
    return [
        {
            **row,
            "role": roles.get(row["variant"], "other"),
            "timings": evaluated.read(tree, artifacts, row["variant"], "timings.json"),
        }
        for row in summary["models"]
    ]


def write(path: Path, tree: Tree, artifacts: Path, summary: dict[str, Any], models: list[Row], code: Path) -> None:
    paths = summary.get("compare", {})
    by_name = {row["variant"]: row for row in models}
    text = render(
        rows=models,
        teacher=by_name[summary["teacher"]],
        shipped=by_name[summary["shipped"]],
        pareto=charts.vega(charts.pareto(models)),
        costs=[charts.vega(chart) for chart in charts.costs(models)],
        families=sorted({family for row in models for family in row["families"]}),
        others=sorted({measure for row in models for measure in row["other"]}),
        problems=samples(tree, artifacts, "answers", "prompt", "answer"),
        texts=samples(tree, artifacts, "continuations", "opening", "continuation"),
        stages=stages(tree, artifacts),
        described={stage: first_paragraph(STAGES / stage / "__init__.py") for stage in params.STAGES},
        students=students(summary["distilled"], artifacts),
        recordings=recordings(tree, summary["distilled"], artifacts),
        paths={name: row | distillation.spent(artifacts, row["links"]) for name, row in paths.items()},
        unequal=distillation.unequal(paths),
        estimated=estimated(tree, artifacts),
        redundancy=redundancy,
        code=files.digest(code)[:12],
    )
    with files.writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(**values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= numbers.FILTERS
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return environment.get_template("report.html.j2").render(script=script(), script_digest=digest, **values)


@cache
def script() -> str:
    """Vega with its embedder, and what draws the page's charts with it."""
    return vl_convert.javascript_bundle((HERE / "report.js").read_text(encoding="utf-8"))


def stages(tree: Tree, artifacts: Path) -> list[dict[str, Any]]:
    """What every variant of every stage did, in the order of the lifecycle."""
    found = []
    for order, stage in enumerate(params.STAGES[:-1]):
        for variant, entry in params.variants(tree, stage).items():
            folder = artifacts / stage / variant
            if (folder / "metrics.json").is_file():
                curve = charts.curve(read_curve(folder / "curve.csv"))
                found.append({
                    "order": order,
                    "stage": stage,
                    "variant": variant,
                    "method": entry["method"],
                    "what": first_paragraph(STAGES / stage / f"{entry['method']}.py"),
                    "metrics": files.read_json(folder / "metrics.json"),
                    "timings": evaluated.optional(folder / "timings.json"),
                    "curve": curve and charts.vega(curve),
                })  # fmt: skip
    return found


def first_paragraph(module: Path) -> str:
    """Of the docstring of a stage or of a technique."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.partition("\n\n")[0].split())


def read_curve(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The losses of a curve.csv: name -> (step, value) pairs."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    losses = [name for name in (table[0] if table else ()) if "loss" in name]
    return {name: [(float(row["step"]), float(row[name])) for row in table if row[name]] for name in losses}


def students(distilled: dict[str, Row], artifacts: Path) -> list[Row]:
    """The best first; last what nobody evaluated, the links of a chain."""
    rows = [
        {"variant": name, **row, **distillation.spent(artifacts, [row["links"]])} for name, row in distilled.items()
    ]
    return sorted(rows, key=lambda row: -1 if row["accuracy"] is None else row["accuracy"], reverse=True)


def recordings(tree: Tree, distilled: dict[str, Row], artifacts: Path) -> dict[str, dict[str, float]]:
    """What this machine spent on the traces that these students learnt from."""
    used = dict.fromkeys(tree["distill"][variant]["traces"] for variant in distilled)
    return {name: distillation.timings(artifacts, name) for name in used if name.startswith("traces/")}


def estimated(tree: Tree, artifacts: Path) -> bool:
    """Whether any stage's joules are an estimate."""
    made = [f"{stage}/{variant}" for stage in params.STAGES[:-1] for variant in params.variants(tree, stage)]
    return any(distillation.timings(artifacts, name).get("energy_measured") == 0 for name in made)


def redundancy(metrics: dict[str, Any]) -> dict[str, list[float]]:
    """Where a technique tells it: kind of layer -> its redundant share in every block."""
    shares = metrics.get("redundancy", {})
    kinds: dict[str, list[float]] = {}
    for name in sorted(shares, key=lambda name: [int(part) for part in name.split(".") if part.isdigit()]):
        kinds.setdefault(name.rpartition(".")[2], []).append(shares[name])
    return kinds


def samples(tree: Tree, artifacts: Path, kind: str, question: str, answer: str) -> list[dict[str, Any]]:
    """Every question, or opening, once; under it the answers, each with the models that gave it."""
    groups: dict[str, dict[str, Any]] = {}
    for model in params.models(tree):
        for sample in evaluated.read(tree, artifacts, model, "samples.json").get(kind, []):
            group = groups.setdefault(sample[question], {**sample, "question": sample[question], "answers": {}})
            group["answers"].setdefault((sample[answer], sample.get("correct")), []).append(model)
    return list(groups.values())
