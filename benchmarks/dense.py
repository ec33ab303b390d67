"""Is a checker's word better spent on the small model, or on its teacher? What profile `sparse-to-dense` has made.

make run PROFILE=sparse-to-dense && python -m benchmarks.dense

The peer is `direct`, GRPO on the student itself; the control is `plain`, the teacher as it was, handed down as the
reinforced one is (`dense`). Accuracies are of the held-out problems of each family, gains paired with the start as in
benchmarks.reason, and dense less direct and less plain the same. Arithmetic as stages/distill counts it: 2 operations a
parameter and token that is read, 6 with the backward pass (Kaplan et al. 2020, arXiv:2001.08361); of GRPO the drawing
and then, of the live groups alone, policy and reference, by its curve. That of the teacher's first training, which
every way to hand it down would pay, is left out.
"""

from pathlib import Path
from statistics import mean
from typing import Any

import cyclopts

from benchmarks import _result
from benchmarks.reason import by_family, curve, gain, marked
from stages.lib.frame import files, params
from stages.lib.store import models, records
from stages.lib.text import chat

RESULT = Path("benchmarks/results/dense.json")
ARTIFACTS = Path("artifacts")
ARMS, SEEDS = ("reinforced", "direct", "plain", "dense"), range(3)
READ, LEARNT = 2, 6  # operations a parameter and token


def main(*, out: Path = RESULT) -> None:
    marks, found = marked(), dict[str, Any]()
    arms = {arm: [marks[f"{arm}-{seed}"] for seed in SEEDS] for arm in ARMS} | {"teacher": [marks["large"]]}
    for family, problems in by_family(marks["start"]).items():
        found |= {
            f"{family}_problems": len(problems),
            f"{family}_start": mean(marks["start"][each] for each in problems),
        }
        for arm, runs in arms.items():
            found |= {f"{family}_{arm}{key}": value for key, value in gain(marks["start"], runs, problems).items()}
        for peer in ("direct", "plain"):
            middle = {each: mean(run[each] for run in arms[peer]) for each in problems}
            ahead = gain(middle, arms["dense"], problems)
            ends = ("_gain", "_gain_low", "_gain_high")
            found |= {f"{family}_dense_less_{peer}{end.removeprefix('_gain')}": ahead[end] for end in ends}
    found |= arithmetic()
    for name, value in found.items():
        print(f"{name:45} {value:,.4g}")
    _result.save(out, found, "torch", "transformers")


def arithmetic() -> dict[str, float]:
    """Operations of each arm, means over the seeds."""
    tree = params.read()
    size = {name: models.load(ARTIFACTS / f"align/{name}/model").num_parameters() for name in ("start", "teacher")}
    tokenizer = models.load_tokenizer(ARTIFACTS / "align/start/model")
    rows = records.load(ARTIFACTS / "data/problems/records", "train")
    prompt = mean(len(chat.prompt_ids(tokenizer, row["prompt"])) for row in rows)
    reinforced = mean(drawn(tree, f"reinforced-{seed}", prompt, size["teacher"]) for seed in SEEDS)
    written = tree["traces"]["teacher"]["count"] * (prompt + length("reinforced-0")) * READ * size["teacher"]
    handed = {
        arm: mean(sum(taught(f"{part}-{seed}") for part in parts) for seed in SEEDS) + written
        for arm, parts in {"dense": ("warm", "dense"), "plain": ("plain-warm", "plain")}.items()
    }
    return {
        "student_parameters": size["start"],
        "teacher_parameters": size["teacher"],
        "reinforced_flops": reinforced,
        "plain_flops": handed["plain"],
        "dense_flops": handed["dense"] + reinforced,
        "direct_flops": mean(drawn(tree, f"direct-{seed}", prompt, size["start"]) for seed in SEEDS),
    }


def drawn(tree: params.Tree, name: str, prompt: float, parameters: int) -> float:
    """Of a GRPO run: every reply is drawn, those of live groups are learnt from, beside the reference."""
    replies = tree["align"][name]["training"]["batch_size"]
    tokens = ((replies * (prompt + row["length"]), row["live"]) for row in curve(name))
    return parameters * sum(count * (READ + live * (LEARNT + READ)) for count, live in tokens)


def length(name: str) -> float:
    return mean(row["length"] for row in curve(name))


def taught(name: str) -> float:
    metrics = files.read_json(ARTIFACTS / f"distill/{name}/metrics.json")
    return metrics["student_flops"] + metrics["teacher_flops"]


if __name__ == "__main__":
    cyclopts.run(main)
