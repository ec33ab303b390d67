"""A board like llama.cpp's: SmolLM2-135M-Instruct in every format, quantized and pruned by every technique.

python -m benchmarks.boards [FOLDER]

Runs the profile `boards` of the committed project in a clone of its own (a temporary one, or FOLDER, where a second
call finds what is done). Perplexity, KL and same top tokens are of the same held-out rows, read back
from the file; tokens/s are those of the runtime that the file ships for, one stream. The peer is the model as it was.
"""

import subprocess
import sys
from math import exp
from pathlib import Path
from typing import Any

import cyclopts

from benchmarks import _clone, _result
from stages.lib.frame import files

RESULT = Path("benchmarks/results/boards.json")
COLUMNS = {
    "bytes": "{:,}",
    "bits_per_weight": "{:.2f}",
    "perplexity": "{:.2f}",
    "kl": "{:.4f}",
    "same_top": "{:.1%}",
    "decode_tokens_per_s": "{:.1f}",
}


def main(folder: Path | None = None) -> None:
    with _clone.project(folder) as project:
        subprocess.run(["make", f"PYTHON={sys.executable}", "models/smollm2.gguf"], cwd=project, check=True)
        flow = [sys.executable, "-m", "flows.lifecycle"]
        subprocess.run([*flow, "prune", "quantize", "export", "--profile", "boards"], cwd=project, check=True)
        subprocess.run(flow, cwd=project, check=True)  # by now only measurements are left, one at a time
        summary = files.read_json(project / "artifacts/report/summary.json")
        rows = {row["variant"]: measured(project / "artifacts", row) for row in summary["models"]}
    print_table(rows)
    flat = {f"{name}_{key}": round(value, 4) for name, row in rows.items() for key, value in row.items()}
    _result.save(RESULT, flat | {"peer": "teacher, float32 in transformers"}, "torch", "llmcompressor", "gguf")


def measured(artifacts: Path, row: dict[str, Any]) -> dict[str, float]:
    made = files.read_json(artifacts / row["model"] / "metrics.json")
    timings = files.read_json(artifacts / "eval" / row["variant"] / "speed/timings.json")
    found = {"bytes": row["bytes"], "bits_per_weight": row["bits_per_weight"]}
    if row["kl"] is not None:
        found |= {"perplexity": exp(made["loss_after"]), "kl": row["kl"], "same_top": row["same_top"]}
    return found | {"decode_tokens_per_s": timings["decode_tokens_per_second"]}


def print_table(rows: dict[str, dict[str, float]]) -> None:
    print(f"{'':16}" + "".join(f"{name:>22}" for name in COLUMNS))
    for name, row in rows.items():
        cells = [shape.format(row[key]) if key in row else "" for key, shape in COLUMNS.items()]
        print(f"{name:16}" + "".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    cyclopts.run(main)
