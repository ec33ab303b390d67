"""The profile `headline`, whole: what ships against its teacher, the peer, in bytes and in held-out problems.

python -m benchmarks.headline [FOLDER]

Runs the committed project in a clone of its own (a temporary one, or FOLDER, where a second call finds what is done),
so the params.yaml here stays what it is. Bytes are those of the files that are loaded: the teacher's float32
checkpoint, the student's GGUF. The control is the student's shape without a teacher. Takes up to an hour on two cores.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import cyclopts

from benchmarks import _clone, _result
from stages.lib.frame import files

RESULT = Path("benchmarks/results/headline.json")


def main(folder: Path | None = None) -> None:
    with _clone.project(folder) as project:
        subprocess.run([sys.executable, "-m", "flows.lifecycle", "--profile", "headline"], cwd=project, check=True)
        summary = files.read_json(project / "artifacts/report/summary.json")
        seconds = [files.read_json(path)["seconds"] for path in (project / "artifacts").glob("*/*/timings.json")]
    result = compare(summary) | {"minutes_of_all_stages": round(sum(seconds) / 60, 1)}
    _result.save(RESULT, result, "torch", "transformers", "xllamacpp")
    print("\n".join(f"{name:25} {value}" for name, value in result.items()))


def compare(summary: dict[str, Any]) -> dict[str, Any]:
    rows = {row["variant"]: row for row in summary["models"]}
    teacher, shipped = rows[summary["teacher"]], rows[summary["shipped"]]
    return {
        "ratio_bytes": round(shipped["times_smaller"], 1),
        "accuracy_kept": round(shipped["accuracy_kept"], 4),
        "problems": shipped["num_problems"],
        **values("ours", shipped),
        **values("peer", teacher),
        "peer": f"the teacher, {teacher['model']}",
        **values("control", rows["direct"]),
    }


def values(side: str, row: dict[str, Any]) -> dict[str, Any]:
    kept = ("bytes", "accuracy", "accuracy_low", "accuracy_high", "bits_per_byte")
    return {f"{side}_{name}": round(row[name], 4) for name in kept}


if __name__ == "__main__":
    cyclopts.run(main)
