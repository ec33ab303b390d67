"""Direct preference optimisation, by TRL. Rafailov et al. 2023, arXiv:2305.18290, eq. 7.

`loss` is any of TRL's: the paper's sigmoid, ipo (arXiv:2310.12036), robust (arXiv:2403.00409), ... The reference is the
model as it came; with LoRA it is the same model with its adapters off, so it costs no memory.
"""

import copy
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from pydantic import PositiveFloat, model_validator

from stages.align import Alignment
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import models
from stages.lib.store.records import Record
from stages.lib.training import loop


class Params(Alignment):
    method: Literal["dpo"]
    beta: PositiveFloat = 0.1  # weight of staying near the reference
    loss: Literal["sigmoid", "ipo", "robust", "hinge", "apo_zero", "sppo_hard"] = "sigmoid"

    @model_validator(mode="after")
    def trained_by_trl(self) -> "Params":
        if self.training.keep_zeros:
            raise ValueError("TRL's trainer moves every weight, so keep_zeros can't hold: recover with sft or distill")
        if self.training.fake_quantize:
            raise ValueError("TRL's trainer rounds no weights, so fake_quantize can't hold: take sft or distill")
        return self


def align(
    model: Any,
    tokenizer: Any,
    problems: list[Record],
    examples: list[Record],
    p: Params,
    curve: list[dict[str, float]],
    checkpoints: Path,
) -> dict[str, float]:
    from datasets import Dataset
    from trl import DPOTrainer

    if missing := {"chosen", "rejected"} - examples[0].keys():
        raise UserError(f"dpo learns from preference pairs; {', '.join(sorted(missing))} missing in its examples")
    started = monotonic()
    trainer = DPOTrainer(
        model=model,
        ref_model=None if p.lora else copy.deepcopy(model),
        args=arguments(p, checkpoints),
        train_dataset=Dataset.from_list([conversation(pair) for pair in examples]),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=any(checkpoints.glob("checkpoint-*")))
    curve.extend(
        {"step": row["step"], "loss": row["loss"], "accuracy": row["rewards/accuracies"], "lr": row["learning_rate"]}
        for row in trainer.state.log_history
        if "loss" in row
    )
    files.remove(checkpoints)
    model.eval()
    return {"train_seconds": monotonic() - started}


def conversation(pair: Record) -> dict[str, Any]:
    """As TRL wants it; the tokenizer's chat template does the rest."""
    replies = {side: [{"role": "assistant", "content": pair[side]}] for side in ("chosen", "rejected")}
    return replies | {"prompt": [{"role": "user", "content": pair["prompt"]}]}


def arguments(p: Params, checkpoints: Path) -> Any:
    """Our training params in TRL's words."""
    from trl import DPOConfig

    t = p.training
    return DPOConfig(
        output_dir=str(checkpoints),
        max_steps=t.steps,
        per_device_train_batch_size=t.batch_size // t.accumulation,
        gradient_accumulation_steps=t.accumulation,
        learning_rate=t.lr,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": t.lr_floor},
        warmup_steps=round(t.warmup * t.steps),
        weight_decay=t.weight_decay,
        max_grad_norm=t.clip,
        beta=p.beta,
        loss_type=[p.loss],
        max_length=p.context,
        bf16=loop.mixed(t),
        use_cpu=models.device() == "cpu",
        seed=t.seed,
        logging_steps=1,
        save_steps=max(1, t.steps // 4),
        save_total_limit=1,
        report_to="none",
        dataset_num_proc=None,
        gradient_checkpointing=False,
        disable_tqdm=False,
    )
