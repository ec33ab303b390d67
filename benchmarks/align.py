"""Learning from preferences and from rewards: our loop against TRL's trainers; same model, data, sizes and machine.

python -m benchmarks.align

After `make run`: align/sft learns by DPO from its pairs, and by GRPO from eight replies to each of its problems. These
are paid by a coin: the model is right nearly always, ours does not read groups of equal rewards, TRL does, and what is
measured is the reading too. Both sides take AdamW steps (fused), in bfloat16 autocast where the CPU multiplies it
faster; TRL generates with transformers. Tokens are those of prompts and replies, without filling; what takes time
besides generation is the learning. Rounds alternate; the first of each is warm-up and not counted. The rate of learning
is so small that the model stays what it is, so that all draw replies of the same lengths.
"""

import os
import random
import statistics
import tempfile
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch

from benchmarks import _loops, _result
from stages.align import Given, dpo, grpo
from stages.lib.nets import reward
from stages.lib.sampling import rollouts
from stages.lib.store import models, records
from stages.lib.text import packing
from stages.lib.training import loop

ROUNDS, LR = 3, 1e-7
DPO_STEPS, PAIRS = 20, 16
GRPO_STEPS, REPLIES, GROUP, ROOM = 5, 128, 8, 48
DRAWS = {"group": GROUP, "max_new_tokens": ROOM, "forecast": 0, "rewards": {"correct": 0, "random": 1}}
RESULT = Path("benchmarks/results/align.json")
MODEL, RECORDS = Path("artifacts/align/sft/model"), Path("artifacts/data")
PARENTS = {"model": "align/sft", "problems": "data/problems", "examples": "data/pairs"}


class Round(NamedTuple):
    seconds: float
    generating: float  # of these
    tokens: float


def training(steps: int, rows: int) -> dict[str, Any]:
    return {"steps": steps, "batch_size": rows, "lr": LR, "optimizer": "adamw"}


@contextmanager
def timing(owner: Any, name: str, spent: list[float]) -> Any:
    """Adds up what a function takes, within."""
    function = getattr(owner, name)

    def timed(*arguments: Any, **more: Any) -> Any:
        start = perf_counter()
        try:
            return function(*arguments, **more)
        finally:
            spent.append(perf_counter() - start)

    setattr(owner, name, timed)
    yield
    setattr(owner, name, function)


def ours(p: dpo.DPO | grpo.GRPO, tokenizer: Any, known: list[Any], folder: Path) -> Round:
    policy, reference = models.load(MODEL), models.load(MODEL)
    batches, seen, spent = p.batches(Given(tokenizer, known, known, policy)), [], list[float]()

    def counted(index: int) -> packing.Batch:
        batch = batches(index)
        seen.append(float((batch["positions"] <= reward.last(batch)[:, None]).sum()))
        return batch

    start = perf_counter()
    with timing(rollouts, "play", spent):
        loop.fit(
            policy, counted, lambda part: p.loss(policy, lambda: nullcontext(reference), part), p.training, [], folder
        )
    return Round(perf_counter() - start, sum(spent), sum(seen))


def their_dpo(tokenizer: Any, pairs: list[Any], folder: Path) -> Round:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def conversation(pair: Any) -> dict[str, Any]:
        replies = {side: [{"role": "assistant", "content": pair[side]}] for side in ("chosen", "rejected")}
        return replies | {"prompt": [{"role": "user", "content": pair["prompt"]}]}

    arguments: Any = _loops.arguments(DPO_STEPS, PAIRS, folder) | {"learning_rate": LR}
    trainer = DPOTrainer(
        model=models.load(MODEL),
        ref_model=models.load(MODEL),
        args=DPOConfig(**arguments, max_length=256, gradient_checkpointing=False),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([conversation(pair) for pair in pairs]),
    )
    collate, seen = trainer.data_collator, []

    def counted(rows: list[Any]) -> Any:
        batch = collate(rows)
        seen.append(float(batch["attention_mask"].sum()))
        return batch

    trainer.data_collator = counted
    return Round(_loops.timed(trainer), 0.0, sum(seen[:DPO_STEPS]))


def their_grpo(tokenizer: Any, known: list[Any], folder: Path) -> Round:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    coin = random.Random(0)

    def paid(completions: list[Any], **_: Any) -> list[float | None]:
        return [float(coin.random() < 0.5) for _ in completions]

    arguments: Any = _loops.arguments(GRPO_STEPS, REPLIES, folder) | {"learning_rate": LR, "logging_steps": 1}
    settings = GRPOConfig(
        **arguments,
        num_generations=GROUP,
        steps_per_generation=1,
        max_completion_length=ROOM,
        loss_type="bnpo",
        epsilon_high=0.28,
        temperature=1.0,
        top_k=0,
        gradient_checkpointing=False,
    )
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in known]
    trainer = GRPOTrainer(
        model=models.load(MODEL),
        reward_funcs=paid,
        args=settings,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
    )
    spent = list[float]()
    with timing(trainer, "_generate", spent):
        seconds = _loops.timed(trainer)
    return Round(seconds, sum(spent), trainer.state.num_input_tokens_seen)


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    tokenizer = models.load_tokenizer(MODEL)
    solved, pairs = (records.load(RECORDS / name / "records", "train") for name in ("problems", "pairs"))
    solved = solved[:: len(solved) // 2000]
    by_dpo = dpo.DPO.model_validate({"method": "dpo", **PARENTS, "training": training(DPO_STEPS, PAIRS)})
    by_grpo = grpo.GRPO.model_validate(
        {"method": "grpo", **PARENTS, **DRAWS, "training": training(GRPO_STEPS, REPLIES)}
    )
    sides: dict[str, Callable[[Path], Round]] = {
        "dpo": lambda folder: ours(by_dpo, tokenizer, pairs, folder),
        "dpo_peer": lambda folder: their_dpo(tokenizer, pairs, folder),
        "grpo": lambda folder: ours(by_grpo, tokenizer, solved, folder),
        "grpo_peer": lambda folder: their_grpo(tokenizer, solved, folder),
    }
    rounds: dict[str, list[Round]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS + 1):
            for name, side in sides.items():
                rounds[name].append(side(Path(folder) / name))
    result: dict[str, Any] = {"peer": "trl", "rounds": ROUNDS}
    for name, some in rounds.items():
        result[f"{name}_tokens_per_s"] = round(statistics.median(each.tokens / each.seconds for each in some[1:]))
        share = statistics.median(each.generating / each.seconds for each in some[1:])
        result |= {f"{name}_share_generating": round(share, 2)} if share else {}
    for method in ("dpo", "grpo"):
        result[f"ratio_{method}"] = round(result[f"{method}_tokens_per_s"] / result[f"{method}_peer_tokens_per_s"], 2)
    result["parameters"] = models.load(MODEL).num_parameters()
    for name, value in result.items():
        print(f"{name:25} {value}")
    _result.save(RESULT, result, "torch", "transformers", "trl")


if __name__ == "__main__":
    main()
