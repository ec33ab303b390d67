"""Fine-tuning on replies: our loop against transformers.Trainer; same model, rows, optimizer, precision and machine.

python -m benchmarks.training

Both get the very same packed rows (ids, labels, positions) and take AdamW steps (fused) in bfloat16 autocast where the
CPU multiplies it; ours computes attention in float32 and example by example, its own way to keep them apart. Rounds
alternate; the first of each is warm-up and not counted.
"""

import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import _loops, _result
from stages.lib.nets import packed
from stages.lib.store import records
from stages.lib.text import packing
from stages.pretrain import decoder
from stages.tokenize import bpe

ROUNDS, STEPS, ROWS, CONTEXT = 4, 12, 8, 256
RESULT = Path("benchmarks/results/training.json")
PROBLEMS = Path("artifacts/data/problems/records")
SHAPE = {"method": "decoder", "tokens": "tokenize/bpe", "hidden": 256, "layers": 4, "ffn": 512}


def build(tokenizer: Any) -> Any:
    return decoder.Decoder.model_validate(SHAPE).build(tokenizer)


def ours(model: Any, batch: Any, folder: Path) -> float:
    return _loops.ours(model, batch, partial(packed.loss, model), STEPS, ROWS, folder)


def peer(model: Any, rows: list[dict[str, Any]], folder: Path) -> float:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(**_loops.arguments(STEPS, ROWS, folder), lr_scheduler_type="cosine")
    return _loops.timed(Trainer(model=model, args=arguments, train_dataset=rows))  # pyright: ignore[reportArgumentType]


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    solved = records.load(PROBLEMS, "train")[:4000]
    texts = [f"{row['prompt']}\n{row['solution']}" for row in solved]
    parents = {"documents": "data/corpus", "problems": "data/problems"}
    own = bpe.BPE.model_validate({"method": "bpe", "vocab_size": 1024} | parents)
    tokenizer = own.train(texts)
    batch = packing.batches(tokenizer, solved, CONTEXT, ROWS, seed=0)
    names = {"ids": "input_ids", "labels": "labels", "positions": "position_ids"}
    columns = {new: torch.cat([batch(i)[old] for i in range(STEPS)]) for old, new in names.items()}
    rows = [{name: column[i] for name, column in columns.items()} for i in range(STEPS * ROWS)]

    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS + 1):
            seconds["ours"].append(ours(build(tokenizer), batch, Path(folder)))
            seconds["peer"].append(peer(build(tokenizer), rows, Path(folder)))
    speed = {name: STEPS * ROWS * CONTEXT / statistics.median(each[1:]) for name, each in seconds.items()}
    result = {
        "ours_tokens_per_s": round(speed["ours"]),
        "peer_tokens_per_s": round(speed["peer"]),
        "ratio": round(speed["ours"] / speed["peer"], 2),
        "peer": "transformers.Trainer",
        "parameters": build(tokenizer).num_parameters(),
        "rounds": ROUNDS,
    }
    _result.save(RESULT, result, "torch", "transformers")
    print("\n".join(f"{name:5} {speed[name]:8,.0f} tokens/s" for name in speed), f"\nratio {result['ratio']}")


if __name__ == "__main__":
    main()
