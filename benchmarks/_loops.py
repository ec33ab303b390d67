"""Our loop and the arguments of its peers: AdamW (fused), mixed precision where the machine has it, nothing saved."""

from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from stages.lib.training import config, loop

LR = 3e-3


def ours(model: Any, batch: Any, loss: Any, steps: int, rows: int, folder: Path) -> float:
    """Seconds of a training by stages/lib/training/loop.py."""
    given = {"steps": steps, "batch_size": rows, "lr": LR, "optimizer": "adamw"}
    start = perf_counter()
    loop.fit(model, batch, loss, config.Training.model_validate(given), [], folder / "checkpoints")
    return perf_counter() - start


def arguments(steps: int, rows: int, folder: Path) -> dict[str, Any]:
    """The same in the words of transformers.TrainingArguments and what TRL makes of it."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "learning_rate": LR,
        "optim": "adamw_torch_fused",
        "bf16": loop.mixed("auto"),
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def timed(trainer: Any) -> float:
    start = perf_counter()
    trainer.train()
    return perf_counter() - start
