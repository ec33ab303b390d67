"""Think longer, or be bigger? What profile `longer` has made.

make run PROFILE=longer && python -m benchmarks.longer

The peer is a teacher twice the size. Of N replies to a problem one is chosen: by the majority of their answers, by a
reward model of replies, or by the worst step in the eyes of a reward model of steps, whose labels came from worked
solutions or from how the model went on by itself; means of three seeds, over all disjoint N of 64 replies to 200
problems, but for those that the reward models have learnt from. Joules, estimated where the machine does not tell them,
and operations, 2 a parameter and token (Kaplan et al. 2020, arXiv:2001.08361), are of the drawing; what a reward model
takes to read the replies is in neither.
"""

from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import cyclopts

from benchmarks import _result
from stages.lib.frame import files
from stages.lib.store import models, records
from stages.lib.store.records import Record
from stages.lib.text import chat
from stages.traces.rewarded import CHOICES, disjoint

RESULT = Path("benchmarks/results/longer.json")
ARTIFACTS = Path("artifacts")
MODELS = {"small": "start", "large": "teacher"}
JUDGES, SEEDS = ("replies", "worked", "tried"), range(3)


def main(*, out: Path = RESULT) -> None:
    learnt = {row["id"].rpartition("/")[0] for row in replies("tries")}
    found: dict[str, Any] = {}
    for name, model in MODELS.items():
        groups = grouped(replies(name), learnt)
        found |= {f"{name}_problems": len(groups)} | cost(name, model)
        found |= chosen(f"{name}_majority", [groups], "majority") | chosen(f"{name}_any", [groups], "oracle")
    for judge in JUDGES:
        scored = [grouped(replies(f"{judge}-{seed}"), learnt) for seed in SEEDS]
        found |= chosen(f"small_best_by_{judge}", scored, "best")
        found |= chosen(f"small_votes_by_{judge}", scored, "weighted")
    for by in ("worked", "tried"):
        metrics = files.read_json(ARTIFACTS / f"traces/{by}/metrics.json")
        found |= {
            f"labels_{by}_{name}": metrics[name] for name in ("right", "agreement_with_worked", "steps_per_reply")
        }
    for name, value in found.items():
        print(f"{name:45} {value:,.4g}")
    _result.save(out, found, "torch", "transformers")


def replies(name: str) -> list[Record]:
    return records.load(ARTIFACTS / f"traces/{name}/records", "train")


def grouped(rows: list[Record], learnt: set[str]) -> list[list[Record]]:
    """The replies of each problem that nobody has learnt from."""
    groups = defaultdict[str, list[Record]](list)
    for row in rows:
        groups[row["id"].rpartition("/")[0]].append(row)
    return [group for problem, group in groups.items() if problem not in learnt]


def chosen(name: str, seeds: list[list[list[Record]]], choice: str) -> dict[str, float]:
    """The share that is right, of N = 1, 2, 4, ... replies; of several seeds also the least and the largest."""
    found, size = {}, 1
    while size <= min(map(len, seeds[0])):
        rates = [
            mean(mean(CHOICES[choice](part) for part in disjoint(group, size)) for group in groups) for groups in seeds
        ]
        found[f"{name}_of_{size}"] = mean(rates)
        if len(rates) > 1:
            found |= {f"{name}_of_{size}_least_seed": min(rates), f"{name}_of_{size}_largest_seed": max(rates)}
        size *= 2
    return found


def cost(name: str, model: str) -> dict[str, float]:
    """Of one reply, drawn in batches."""
    folder, rows = ARTIFACTS / f"align/{model}/model", replies(name)
    tokenizer, parameters = models.load_tokenizer(folder), models.load(folder).num_parameters()
    spent = files.read_json(ARTIFACTS / f"traces/{name}/timings.json")
    tokens = mean(len(chat.prompt_ids(tokenizer, row["prompt"])) + len(row["tokens"]) for row in rows)
    return {
        f"{name}_parameters": parameters,
        f"{name}_tokens_per_reply": tokens,
        f"{name}_flops_per_reply": 2 * parameters * tokens,
        f"{name}_joules_per_reply": spent["joules"] / len(rows),
        f"{name}_milliseconds_per_reply": 1000 * spent["seconds"] / len(rows),
    }


if __name__ == "__main__":
    cyclopts.run(main)
