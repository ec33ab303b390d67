"""What each way of learning from a model's own tries has taught: the models that profile `align` has made.

make run PROFILE=align && python -m benchmarks.methods

The peers are the methods themselves and the start that all began from. `tried` are the held-out problems of the
families that were learnt from, `others` those of the families that were not; gains are paired, problem by problem, with
their 95 % interval over problems (normal approximation), beside least and largest of the seeds. The start writes
eight replies to each held-out problem that was tried: a right and a wrong one to the same prompt are a pair, of which
the log-probabilities before and after are told apart. Each model of seed 0 writes eight replies too: how often one of
them is right (pass_at_8), and how long they are. `four_bits` is the Q4_0 GGUF of seed 0 against that model before it.
"""

from pathlib import Path
from statistics import mean
from typing import Any

import cyclopts
import torch

from benchmarks import _result
from benchmarks.reason import gain
from stages.align.parts import pairs
from stages.lib.frame import files, params
from stages.lib.sampling import rollouts
from stages.lib.store import models, records
from stages.lib.store.records import Record
from stages.lib.text import chat, problems

RESULT = Path("benchmarks/results/methods.json")
METHODS = ("sft", "dpo", "orpo", "simpo", "kto", "reinforce", "grpo", "ppo")
ARTIFACTS = Path("artifacts")
GROUP, ROOM, CONTEXT, AT_ONCE = 8, 40, 256, 512


def main(*, out: Path = RESULT) -> None:
    tried = set(params.read()["data"]["tried"]["families"])
    marks = {name: measured(name, "accuracy", "samples")["right"] for name in params.models(params.read())}
    start = marks["start"]
    groups = {
        "tried": [each for each in start if each.rpartition("/")[0] in tried],
        "others": [each for each in start if each.rpartition("/")[0] not in tried],
    }
    rows = [row for row in records.load(ARTIFACTS / "data/problems/records", "held_out") if row["family"] in tried]
    written = write("start", rows)
    known = paired(rows, written)
    before = log_probabilities("start", known)
    found: dict[str, Any] = {f"{group}_problems": len(some) for group, some in groups.items()} | {"pairs": len(known)}
    found |= {f"start_{group}": mean(start[each] for each in some) for group, some in groups.items()}
    found |= {f"start_{name}": value for name, value in summary("start", rows, written).items()}
    found |= four_bits("start", marks["start"], marks["start-q4_0"])
    for method in METHODS:
        names = [f"{method}-{seed}" for seed in range(3)]
        for group, some in groups.items():
            gained = gain(start, [marks[name] for name in names], some)
            found |= {f"{method}_{group}{key}": value for key, value in gained.items()}
        found |= {f"{method}_{name}": value for name, value in learnt(names, known, before).items()}
        found |= {f"{method}_{name}": value for name, value in summary(names[0], rows, write(names[0], rows)).items()}
        found |= four_bits(method, marks[names[0]], marks[f"{method}-q4_0"])
    for name, value in found.items():
        print(f"{name:45} {value:,.4g}")
    _result.save(out, found, "torch", "transformers")


def measured(name: str, measure: str, kind: str = "metrics") -> dict[str, Any]:
    return files.read_json(ARTIFACTS / "eval" / name / measure / f"{kind}.json")


def write(name: str, rows: list[Record]) -> list[list[rollouts.Reply]]:
    """Eight replies to each problem."""
    folder = ARTIFACTS / "align" / name / "model"
    model, tokenizer = models.load(folder), models.load_tokenizer(folder)
    asked = [(row, chat.prompt_ids(tokenizer, row["prompt"])) for row in rows for _ in range(GROUP)]
    replies: list[rollouts.Reply] = []
    for first in range(0, len(asked), AT_ONCE):
        some = asked[first : first + AT_ONCE]
        replies += rollouts.play(model, tokenizer, some, ROOM, 1.0, seed=first).replies
    return [replies[first : first + GROUP] for first in range(0, len(replies), GROUP)]


def right(row: Record, reply: rollouts.Reply) -> bool:
    return reply.stopped and problems.correct(row, reply.text)


def paired(rows: list[Record], written: list[list[rollouts.Reply]]) -> list[Record]:
    """Of each problem that has both, the first right and the first wrong reply that ended."""
    found = []
    for row, replies in zip(rows, written, strict=True):
        good, bad = ([r.text for r in replies if r.stopped and right(row, r) == wanted] for wanted in (True, False))
        if good and bad:
            found.append({"id": row["id"], "prompt": row["prompt"], "chosen": good[0], "rejected": bad[0]})
    return found


@torch.no_grad()
def log_probabilities(name: str, known: list[Record]) -> tuple[float, float]:
    """Of chosen and of rejected replies, means, nats."""
    folder = ARTIFACTS / "align" / name / "model"
    model = models.load(folder)
    every = pairs.encode(models.load_tokenizer(folder), known, CONTEXT)
    sides = zip(*(pairs.log_probabilities(model, pairs.together([pair])) for pair in every), strict=True)
    chosen, rejected = (torch.cat(side).mean().item() for side in sides)
    return chosen, rejected


def learnt(names: list[str], known: list[Record], before: tuple[float, float]) -> dict[str, float]:
    """Means over the seeds."""
    after = [log_probabilities(name, known) for name in names]
    chosen, rejected = (mean(each[side] for each in after) - before[side] for side in (0, 1))
    aligned = [files.read_json(ARTIFACTS / "align" / name / "metrics.json") for name in names]
    spent = [files.read_json(ARTIFACTS / "align" / name / "timings.json") for name in names]
    return {
        "chosen_logprob_change_nats": chosen,
        "rejected_logprob_change_nats": rejected,
        "margin_nats": chosen - rejected,
        "kl_start_nats_per_token": mean(each["kl_reference"] for each in aligned),
        "bits_per_byte": mean(measured(name, "bits_per_byte")["bits_per_byte"] for name in names),
        "lenient": mean(measured(name, "accuracy")["accuracy_lenient"] for name in names),
        "train_seconds": mean(each["train_seconds"] for each in spent),
    }


def summary(name: str, rows: list[Record], written: list[list[rollouts.Reply]]) -> dict[str, float]:
    marks = [[right(row, reply) for reply in replies] for row, replies in zip(rows, written, strict=True)]
    every = [reply for replies in written for reply in replies]
    return {
        "right_drawn": mean(mean(group) for group in marks),
        "pass_at_8": mean(any(group) for group in marks),
        "length_tokens": mean(reply.tokens for reply in every),
        "stopped": mean(reply.stopped for reply in every),
        "accuracy": measured(name, "accuracy")["accuracy"],
    }


def four_bits(method: str, before: dict[str, bool], after: dict[str, bool]) -> dict[str, float]:
    changed = gain(before, [after], list(before))
    return {f"{method}_four_bits{key}": changed[key] for key in ("", "_gain", "_gain_low", "_gain_high")}


if __name__ == "__main__":
    cyclopts.run(main)
