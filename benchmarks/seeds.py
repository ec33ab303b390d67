"""The default run over seeds, and on an older kind of CPU: does it tell the same story?

python -m benchmarks.seeds [FOLDER] [--seeds 5]

Runs teacher, student and control of the committed project in a clone of its own (a temporary one, or FOLDER, where a
second call finds what is done). Each seed draws other first weights, another order of the examples and other 200
solved ones; data and held-out problems stay. The older CPU is this one with PyTorch and MKL held to AVX2 instructions,
whose sums come out in another order: seed 0 again. Five minutes a run on two cores.
"""

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import cyclopts
from ruamel.yaml import YAML

from benchmarks import _clone, _result
from stages.lib.frame import files

RESULT = Path("benchmarks/results/seeds.json")
MODELS = ("teacher", "student", "direct-student")
OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"}
TRAINED = ("pretrain", "align", "distill")


def main(folder: Path | None = None, *, seeds: int = 5) -> None:
    with _clone.project(folder) as project:
        runs = {f"seed_{seed}": run(project, seed, {}) for seed in range(seeds)}
    with _clone.project(folder and folder.with_name(f"{folder.name}-avx2")) as project:  # its cache is of another CPU
        runs["seed_0_avx2"] = run(project, 0, OLDER)
    result: dict[str, Any] = {f"{name}_{model}": value for name, row in runs.items() for model, value in row.items()}
    for model in MODELS:
        values = [runs[f"seed_{seed}"][model] for seed in range(seeds)]
        result |= {f"{model}_mean": round(statistics.mean(values), 4), f"{model}_spread": spread(values)}
    _result.save(RESULT, result | {"accuracy": "share of held-out problems"}, "torch", "transformers")
    print(f"{'':14}" + "".join(f"{model:>16}" for model in MODELS))
    for name, row in runs.items():
        print(f"{name:14}" + "".join(f"{row[model]:16.1%}" for model in MODELS))


def run(project: Path, seed: int, environment: dict[str, str]) -> dict[str, float]:
    """Accuracy of each model, by name."""
    file = project / "params.yaml"
    tree = YAML(typ="safe").load(Path("params.yaml"))
    for stage in TRAINED:
        for entry in tree[stage].values():
            if entry.get("method") == "decoder":
                entry["seed"] = entry.get("seed", 0) + 100 * seed
            if "training" in entry:
                entry["training"]["seed"] = seed
    YAML().dump(tree, file)
    targets = [f"accuracy@{model}" for model in MODELS]
    command = [sys.executable, "-m", "flows.lifecycle", *targets]
    subprocess.run(command, cwd=project, check=True, env=os.environ | environment)
    return {
        model: files.read_json(project / "artifacts/eval" / model / "accuracy/metrics.json")["accuracy"]
        for model in MODELS
    }


def spread(values: list[float]) -> float:
    return round(max(values) - min(values), 4)


if __name__ == "__main__":
    cyclopts.run(main)
