"""What distillation reached and what it cost: of each student, and of paths to a student compared over seeds.

A student may be trained in several links. Its cost is the sum over the distill variants on its `model:` line, the
recording of traces not counted. Over n seeds, mean and 95 % interval (Student 1908, Biometrika 6(1)) are

    m +- t(n - 1) s / sqrt(n)        s: standard deviation of the sample, n - 1 in its denominator

Differences to the first path are taken seed by seed, paired by position; then the same.
"""

from itertools import combinations
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from stages.lib.frame import files, params
from stages.lib.frame.params import Tree
from stages.report.parts import evaluated

SPENT = ("seconds", "joules")
COSTS = ("tokens_seen", "student_flops", "teacher_flops")
EQUAL = ("tokens_seen", "student_flops")  # what a fair comparison holds equal
TOLERANCE = 0.01
REACHED = ("accuracy", "bits_per_byte", "acceptance")
EVALUATED = ("accuracy", "accuracy_low", "accuracy_high", "bits_per_byte")
FINISHING = ("prune", "quantize", "export")  # between a trained student and the model that was evaluated


def links(tree: Tree, model: str) -> list[str]:
    """The distill variants that trained a model, the last one first."""
    found = []
    while True:
        stage, _, variant = model.partition("/")
        if stage == "distill":
            found.append(variant)
        elif found or stage not in FINISHING:
            return found
        model = tree[stage][variant]["model"]


def students(tree: Tree, models: list[dict], artifacts: Path) -> dict[str, dict[str, Any]]:
    """Of every distill variant that was run: kinds, cost, acceptance; its evaluation where there is one."""
    evaluated = {row["model"]: row for row in models}
    found = {}
    for variant, entry in params.variants(tree, "distill").items():
        model = f"distill/{variant}"
        line = links(tree, model)
        if all((artifacts / "distill" / link / "metrics.json").is_file() for link in line):
            first, last = (metrics(artifacts, link) for link in (line[-1], line[0]))
            row = evaluated.get(model, {})
            found[variant] = {
                "kinds": [tree["distill"][link]["method"] for link in line[::-1]],
                "teacher": entry["teacher"],
                "links": line[::-1],
                "begins_as": begins_as(tree, line),
                **cost(artifacts, line),
                "acceptance_before": first.get("acceptance_before"),
                "acceptance_after": last.get("acceptance_after"),
                **{key: row.get(key) for key in EVALUATED},
            }
    return found


def compare(tree: Tree, models: list[dict], artifacts: Path) -> dict[str, dict[str, Any]]:
    """Of every path in params.yaml's `compare`: means over its seeds, and their difference to the first path's."""
    rows = {row["variant"]: row for row in models}
    found, baseline = {}, None
    for path, seeds in (tree.get("compare") or {}).items():
        lines = [links(tree, rows[variant]["model"]) for variant in seeds]
        reached = {
            "accuracy": [rows[variant]["accuracy"] for variant in seeds],
            "bits_per_byte": [rows[variant]["bits_per_byte"] for variant in seeds],
            "acceptance": [acceptance(rows[variant]["model"], artifacts) for variant in seeds],
        }
        costs = [cost(artifacts, line) for line in lines]
        found[path] = {
            "seeds": seeds,
            "links": [line[::-1] for line in lines],
            "begins_as": list(dict.fromkeys(begins_as(tree, line) for line in lines)),
            **{key: mean(each[key] for each in costs) for key in COSTS},
            **{key: interval(reached[key]) for key in REACHED},
        }
        if baseline:
            found[path]["difference"] = {key: interval(minus(reached[key], baseline[key])) for key in REACHED}
        baseline = baseline or reached
    return found


def unequal(paths: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(what, path of more, path of less) wherever two paths differ by more than the tolerance."""
    found = []
    for what in EQUAL:
        for pair in combinations(paths, 2):
            less, more = sorted(pair, key=lambda path: paths[path][what])
            if paths[more][what] > (1 + TOLERANCE) * paths[less][what]:
                found.append((what, more, less))
    return found


def interval(values: list[Any]) -> dict[str, float] | None:
    """Mean, low and high end; None if a value is missing."""
    if None in values:
        return None
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / sqrt(len(values))
    return {"mean": mean(values), "low": mean(values) - half, "high": mean(values) + half}


def minus(values: list[Any], others: list[Any]) -> list[Any]:
    return [None if None in pair else pair[0] - pair[1] for pair in zip(values, others, strict=True)]


def cost(artifacts: Path, line: list[str]) -> dict[str, float]:
    made = [metrics(artifacts, link) for link in line]
    return {key: sum(each[key] for each in made) for key in COSTS}


def spent(artifacts: Path, lines: list[list[str]]) -> dict[str, float | None]:
    """Seconds and joules of the stages on this machine, a line of links; None where one was not run here."""
    made = [timings(artifacts, f"distill/{link}") for line in lines for link in line]
    known = {key: all(key in each for each in made) for key in SPENT}
    return {key: sum(each[key] for each in made) / len(lines) if known[key] else None for key in SPENT}


def acceptance(model: str, artifacts: Path) -> float | None:
    """What the distill stage measured; of a model that was pruned or quantized afterwards nobody did."""
    stage, _, variant = model.partition("/")
    return metrics(artifacts, variant).get("acceptance_after") if stage == "distill" else None


def begins_as(tree: Tree, line: list[str]) -> str | None:
    """The model that the first link started from."""
    return tree["distill"][line[-1]]["model"] if line else None


def metrics(artifacts: Path, variant: str) -> dict[str, float]:
    return files.read_json(artifacts / "distill" / variant / "metrics.json")


def timings(artifacts: Path, made: str) -> dict[str, float]:
    """Of "stage/variant"; empty if it came from another machine's cache."""
    return evaluated.optional(artifacts / made / "timings.json")
