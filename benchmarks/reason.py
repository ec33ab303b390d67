"""What rewards have taught, and what the controls have: the models that profile `reason` has made. And of any profile
whose models are called ARM-SEED, but for the first, from which they began.

make run PROFILE=reason && python -m benchmarks.reason
make run PROFILE=few-liked && python -m benchmarks.reason --out benchmarks/results/few-liked.json
make run PROFILE=own-tries && python -m benchmarks.reason --out benchmarks/results/own-tries.json

The peer is the same method paid for something else: a coin, or the form of an answer. Accuracies are of the held-out
problems of each family, means over the arm's seeds; a gain is paired, problem by problem, with its 95 % interval over
problems (normal approximation), beside the least and the largest of the seeds. What stands `at_end` is of the
first seed's curve.
"""

import csv
from collections.abc import Iterable, Mapping
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import cyclopts

from benchmarks import _result
from stages.eval.parts.intervals import Z
from stages.lib.frame import files, params

RESULT = Path("benchmarks/results/reason.json")
CALLED = {"grpo": "after", "random": "random_reward", "format": "format_reward"}  # in the result
MEASURES = ("reward", "live", "length", "entropy", "accuracy", "drift")  # of the curve, as far as it has them


def main(*, out: Path = RESULT) -> None:
    marks, found = marked(), dict[str, Any]()
    names = list(marks)
    start = marks[names[0]]
    arms = list(dict.fromkeys(name.rpartition("-")[0] for name in names[1:]))
    for family, problems in by_family(start).items():
        found[f"{family}_before"] = mean(start[problem] for problem in problems)
        found[f"{family}_problems"] = len(problems)
        for arm in arms:
            runs = [marks[name] for name in names if name.startswith(f"{arm}-")]
            found |= {
                f"{family}_{CALLED.get(arm, arm)}{key}": value for key, value in gain(start, runs, problems).items()
            }
    for arm in arms:
        if place(f"{arm}-0").is_file():  # an export has none
            found |= trained(arm)
    for name, value in found.items():
        print(f"{name:45} {value:,.4g}")
    _result.save(out, found, "torch", "transformers")


def marked() -> dict[str, dict[str, bool]]:
    """Of every model that was evaluated, in their order: which problems it has right."""
    names = params.models(params.read())
    return {name: files.read_json(Path(f"artifacts/eval/{name}/accuracy/samples.json"))["right"] for name in names}


def by_family(problems: Iterable[str]) -> dict[str, list[str]]:
    """All of them, and those of each family."""
    found = {"all": list(problems)}
    for problem in found["all"]:
        found.setdefault(problem.rpartition("/")[0], []).append(problem)
    return found


def gain(start: Mapping[str, float], runs: list[dict[str, bool]], problems: list[str]) -> dict[str, float]:
    """Of several runs from one start; keys are ends of names."""
    rates = [mean(run[problem] for problem in problems) for run in runs]
    differences = [mean(run[problem] for run in runs) - start[problem] for problem in problems]
    half = Z * stdev(differences) / sqrt(len(problems))
    middle = mean(differences)
    ends = {"_gain": middle, "_gain_low": middle - half, "_gain_high": middle + half}
    return {"": mean(rates), "_least_seed": min(rates), "_largest_seed": max(rates)} | ends


def trained(arm: str) -> dict[str, float]:
    """What the curve of the first seed says at its end."""
    last = curve(f"{arm}-0")[-1]
    return {f"{arm}_{name}_at_end": last[name] for name in MEASURES if name in last}


def place(name: str) -> Path:
    return Path(f"artifacts/align/{name}/curve.csv")


def curve(name: str) -> list[dict[str, float]]:
    with place(name).open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


if __name__ == "__main__":
    cyclopts.run(main)
