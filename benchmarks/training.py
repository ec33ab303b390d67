"""Fine-tuning on replies: our loop against transformers.Trainer; same model, rows, optimizer, precision and machine.

python -m benchmarks.training

Both get the very same packed rows (ids, labels, positions) and take AdamW steps (fused) in bfloat16 autocast where the
CPU multiplies it. Rounds alternate; the first of each is warm-up and not counted.
"""

import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from stages.lib import records, replies, training
from stages.pretrain import decoder
from stages.tokenize import bpe

ROUNDS, STEPS, ROWS, CONTEXT = 4, 12, 8, 256
RESULT = Path("benchmarks/results/training.json")
PROBLEMS = Path("artifacts/data/problems/records")
SHAPE = {"method": "decoder", "tokens": "tokenize/bpe", "hidden": 256, "layers": 4, "ffn": 512}


def build(tokenizer: Any) -> Any:
    return decoder.build(tokenizer, decoder.Params.model_validate(SHAPE))


def ours(model: Any, batch: Any, folder: Path) -> float:
    p = training.Training.model_validate({"steps": STEPS, "batch_size": ROWS, "optimizer": "adamw"})
    start = perf_counter()
    training.fit(model, batch, lambda part: replies.loss(model, part), p, [], folder / "checkpoints")
    return perf_counter() - start


def peer(model: Any, rows: list[dict[str, Any]], folder: Path) -> float:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        bf16=training.mixed(training.Training.model_validate({"steps": 1})),
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)  # pyright: ignore[reportArgumentType]
    start = perf_counter()
    trainer.train()
    return perf_counter() - start


def main() -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    solved = records.load(PROBLEMS, "train")[:4000]
    texts = [f"{row['prompt']}\n{row['solution']}" for row in solved]
    parents = {"documents": "data/corpus", "problems": "data/problems"}
    own = bpe.Params.model_validate({"method": "bpe", "vocab_size": 1024} | parents)
    tokenizer = bpe.train(texts, own)
    batch = replies.batches(tokenizer, solved, CONTEXT, ROWS, seed=0)
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
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
    print("\n".join(f"{name:5} {speed[name]:8,.0f} tokens/s" for name in speed), f"\nratio {result['ratio']}")


if __name__ == "__main__":
    main()
