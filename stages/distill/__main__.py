"""Distill, one variant: student + teacher or its traces -> taught student. See stages/distill/__init__.py."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stages.distill import SCAFFOLD, Batch, Distillation, Teacher
from stages.lib.frame import params, tracking
from stages.lib.frame.errors import command
from stages.lib.nets import losses
from stages.lib.store import models, records
from stages.lib.store import tokens as token_rows
from stages.lib.store import traces as recordings
from stages.lib.text import labels, packing
from stages.lib.training import config, distributed, loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def main(
    variant: str,
    *,
    model: Path,
    teacher: Path,
    traces: Path,
    tokens: Path,
    code: Path,
    checkpoints: Path,
    out: Path,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    arguments = dict(locals())
    technique = params.load(Distillation, variant, params_file)
    with tracking.run("distill", variant, technique, out, code, [model, teacher, traces, tokens]) as run:
        distributed.start(main, arguments, technique.training)
        held_out = token_rows.held_out(tokens, technique.held_out_rows, model)
        if technique.one_vocabulary():
            models.require_same_tokenizer(model, teacher)
        if recordings.distributions(traces):
            made_of = {"teacher": run.digests[teacher], "tokens": run.digests[tokens]}
            recordings.require(traces, tokenizer=token_rows.about(tokens)["tokenizer"], **made_of)
        student, tokenizer = models.load(model), models.load_tokenizer(model)
        master = Teacher(models.load(teacher), models.load_tokenizer(teacher))
        shared = models.same_tokenizer(model, teacher)

        def measure(when: str) -> None:
            run.metrics[f"loss_{when}"] = losses.evaluate(student, held_out)
            if shared:
                run.metrics[f"acceptance_{when}"] = losses.acceptance(master.model, student, held_out)

        def loss(part: Batch) -> torch.Tensor:
            return technique.loss(student, master, part)

        measure("before")
        batch = technique.batches(tokenizer, traces)
        if technique.text_rows:
            batch = packing.beside(batch, token_rows.load_for(model, tokens, "train"), technique.text_rows)
        scaffold = technique.scaffold(student, master)
        if scaffold:
            student.add_module(SCAFFOLD, scaffold)
        first = loop.to_device(batch(0), student.device)
        run.metrics |= cost(student, master.model, lambda: loss(first), technique.training)
        place = run.place(checkpoints, technique)
        run.timings |= loop.fit(student, batch, loss, technique.training, run.curve, place, terms=technique.terms)
        if scaffold:
            delattr(student, SCAFFOLD)
        measure("after")
        run.metrics["parameters"] = student.num_parameters()
        if not recordings.distributions(traces):
            labels.keep(student.config, records.Rows(traces, "train"))
        models.save(student, tokenizer, out / "model")


def cost(
    student: "PreTrainedModel", teacher: "PreTrainedModel", work: Callable[[], object], p: config.Training
) -> dict[str, float]:
    """Tokens seen and arithmetic of the training, counted over one batch of it.

    2 operations a parameter and token for a forward pass, 6 with the backward one (Kaplan 2020, arXiv:2001.08361).
    """
    flops = {"student": 0.0, "teacher": 0.0}
    learnt = 0

    def count(name: str, model: "PreTrainedModel", inputs: tuple[torch.Tensor]) -> None:
        nonlocal learnt
        learns = name == "student" and torch.is_grad_enabled()
        learnt += learns * inputs[0].numel()
        flops[name] += (6 if learns else 2) * model.num_parameters() * inputs[0].numel()

    hooks = [
        model.get_input_embeddings().register_forward_hook(lambda _, i, __, n=name, m=model: count(n, m, i))
        for name, model in (("student", student), ("teacher", teacher))
    ]
    work()
    for hook in hooks:
        hook.remove()
    parts = p.steps * p.parts
    return {"tokens_seen": float(learnt * parts)} | {f"{name}_flops": each * parts for name, each in flops.items()}


if __name__ == "__main__":
    command(main)
