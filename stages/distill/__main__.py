"""Distill, one variant: student + teacher or its traces -> taught student. See stages/distill/__init__.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import torch

from stages.lib.frame import params, tracking
from stages.lib.nets import losses
from stages.lib.store import models
from stages.lib.store import tokens as rows
from stages.lib.store import traces as recorded
from stages.lib.text import packing
from stages.lib.training import checkpoint, config, loop


def main(variant: str, *, model: Path, teacher: Path, traces: Path, tokens: Path, out: Path, checkpoints: Path) -> None:
    technique, p = params.load("distill", variant)

    with tracking.run("distill", variant, p, out, inputs=[model, teacher, traces, tokens]) as run:
        rows.require_tokenizer(tokens, model)
        if p.one_vocabulary():
            models.require_same_tokenizer(model, teacher)
        if recorded.distributions(traces):
            made_of = {"teacher": run.digests[teacher], "tokens": run.digests[tokens]}
            recorded.require(traces, tokenizer=rows.about(tokens)["tokenizer"], **made_of)
        student, tokenizer = models.load(model), models.load_tokenizer(model)
        master: Any = models.load(teacher)
        master.tokenizer = models.load_tokenizer(teacher)
        held_out = rows.held_out(tokens, p.held_out_rows)
        place = checkpoint.place(checkpoints, p, run.digests, Path(__file__).parent)
        shared = models.same_tokenizer(model, teacher)

        def measure(when: str) -> None:
            run.metrics[f"loss_{when}"] = losses.evaluate(student, held_out)
            if shared:
                run.metrics[f"acceptance_{when}"] = losses.acceptance(master, student, held_out)

        measure("before")
        batch = technique.batches(tokenizer, traces, p)
        if p.text_rows:
            batch = packing.beside(batch, rows.load(tokens, "train"), p.text_rows)
        if hasattr(technique, "prepare"):
            technique.prepare(student, master, p)

        def loss(part: Any) -> torch.Tensor:
            return technique.loss(student, master, part, p)

        first = loop.to_device(batch(0), student.device)
        run.metrics |= cost(student, master, lambda: loss(first), p.training)
        run.timings |= loop.fit(student, batch, loss, p.training, run.curve, place)
        if hasattr(technique, "prepare"):
            del student.scaffold
        measure("after")
        run.metrics["parameters"] = student.num_parameters()

        models.save(student, tokenizer, out / "model")


def cost(student: Any, teacher: Any, work: Callable[[], Any], p: config.Training) -> dict[str, float]:
    """Tokens seen and arithmetic of the training, counted over one batch of it.

    2 operations a parameter and token for a forward pass, 6 with the backward one (Kaplan 2020, arXiv:2001.08361).
    """
    flops = {"student": 0.0, "teacher": 0.0}
    seen = 0

    def count(name: str, model: Any, inputs: Any) -> None:
        nonlocal seen
        learns = name == "student" and torch.is_grad_enabled()
        seen += learns * inputs[0].numel()
        flops[name] += (6 if learns else 2) * model.num_parameters() * inputs[0].numel()

    hooks = [
        model.get_input_embeddings().register_forward_hook(lambda _, i, __, n=name, m=model: count(n, m, i))
        for name, model in (("student", student), ("teacher", teacher))
    ]
    work()
    for hook in hooks:
        hook.remove()
    parts = p.steps * p.accumulation
    return {"tokens_seen": float(seen * parts)} | {f"{name}_flops": each * parts for name, each in flops.items()}


if __name__ == "__main__":
    cyclopts.run(main)
