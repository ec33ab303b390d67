"""The one training loop: warm-up and decay, accumulation, clipping, mixed precision, exact resume.

A batch is a function of the step alone and the optimizer's whole state is in the checkpoint, so a run that was killed
and started again ends in the very weights of one that was not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from stages.lib.frame import files, progress
from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy, rounding
from stages.lib.training import blocks, checkpoint, distributed, memory
from stages.lib.training.config import Precision, Training
from stages.lib.training.optimizers import optimizers
from stages.lib.training.schedule import rate

Part = Tensor | dict[str, Any]  # token ids (B, T), or those as "ids" with what else a loss needs
Loss = Tensor | tuple[Tensor, dict[str, Tensor]]  # of a part: its mean, and what else the curve shall show of it


def fit(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[Any], Loss],
    p: Training,
    curve: list[dict[str, float]],
    checkpoints: Path,
    watch: Callable[[list[dict[str, float]]], str | None] = lambda curve: None,
    cycle: int = 1,
    terms: Callable[[Any], Tensor | int] = lambda part: 1,
) -> dict[str, float]:
    """Train in place; `batch(i)` gives part i of the run, `loss(part)` its mean loss, alone or with measures, which the
    curve then shows too, and `terms(part)` over how many terms that was the mean. Returns this machine's speed.

    `checkpoints` is a folder that only this run (these inputs, params and code) may use; it is empty again at the end.
    `watch` may say why it makes no sense to go on. `cycle`: steps on one batch of rollouts, which belong to the weights
    that wrote them, so no checkpoint parts them.
    """
    files.require_space(checkpoints, 16 * sum(w.numel() for w in model.parameters()))  # weights, moments, result
    torch.manual_seed(p.seed)
    in_16_bits = mixed(p.precision)
    batch = memory.guarded(batch, model, p, in_16_bits)
    loss = distributed.sharded(model, loss, p, in_16_bits)
    steppers = optimizers(model, p, torch.bfloat16 if in_16_bits else torch.float32)
    held = zeros(model) if p.keep_zeros else []
    spent = {"seconds": 0.0, "tokens": 0.0}
    with rounding.rounding(model, p.fake_quantize), blocks.computing(model, p):
        loss = distributed.replicated(model, loss, p)
        first = checkpoint.restore(checkpoints, model, steppers, curve, spent)
        assert p.devices == 1 or distributed.active() or first == p.steps, "distributed.start comes before"

        def go_on() -> None:
            if reason := watch(curve):
                checkpoint.save(checkpoints, model, steppers, curve, spent)
                raise UserError(f"training stopped after step {len(curve)}: {reason}; its weights are in {checkpoints}")

        go_on()
        model.train()
        saved = monotonic()
        started = saved - spent["seconds"]
        with progress.bar(p.steps, "step", first) as bar:
            for step in range(first, p.steps):
                distributed.seed(p.seed, step)
                means, tokens = update(model, steppers, batch, loss, p, step, held, terms)
                spent = {"seconds": monotonic() - started, "tokens": spent["tokens"] + tokens}
                curve.append({"step": step + 1, "loss": means.pop("loss"), "lr": p.lr * rate(step, p)} | means)
                bar.set_postfix_str(f"loss {curve[-1]['loss']:.3f}, {speed(spent):,.0f} tok/s")
                bar.update()
                go_on()
                due = (step + 1) % cycle == 0 and monotonic() - saved > p.checkpoint_seconds
                if distributed.decided(due):
                    checkpoint.save(checkpoints, model, steppers, curve, spent)
                    saved = monotonic()
        if distributed.active():
            distributed.require_same(model, p)
            checkpoint.save(checkpoints, model, steppers, curve, spent)
            raise distributed.Trained
    model.eval()
    files.remove(checkpoints)
    return {
        "train_seconds": spent["seconds"],
        "trained_tokens": spent["tokens"],
        "train_tokens_per_s": speed(spent),
    }


def speed(spent: checkpoint.Spent) -> float:
    """Tokens a second."""
    return spent["tokens"] / max(spent["seconds"], 1e-9)


def update(
    model: nn.Module,
    steppers: list[torch.optim.Optimizer],
    batch: Callable[[int], Any],
    loss: Callable[[Any], Loss],
    p: Training,
    step: int,
    held: Sequence[tuple[Tensor, Tensor]] = (),
    terms: Callable[[Any], Tensor | int] = lambda part: 1,
) -> tuple[dict[str, float], int]:
    """One optimizer step, `held` weights left at zero; returns means, of "loss" over the terms of the batch and of
    measures over its parts, and how many tokens. A part weighs as many terms as it has: a mean of means would give
    those of short replies more weight than others."""
    for group in (group for stepper in steppers for group in stepper.param_groups):
        group["lr"] = p.lr * rate(step, p)
    device = next(model.parameters()).device
    sums = {"terms": 0.0, "tokens": 0.0, "loss": 0.0}
    for number in range(p.accumulation):
        part = to_device(batch((step * p.accumulation + number) * p.devices + distributed.rank()), device)
        with distributed.unshared(loss, last=number + 1 == p.accumulation):
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed(p.precision)):
                result = loss(part)
            value, measures = result if isinstance(result, tuple) else (result, {})
            weight = float(terms(part)) if p.parts > 1 else 1.0
            (value * weight).backward()
        found = {"terms": weight, "tokens": count(part), "loss": value.item() * weight}
        for name, each in (found | {name: measure.item() for name, measure in measures.items()}).items():
            sums[name] = sums.get(name, 0.0) + each
    sums = dict(zip(sums, distributed.totals(list(sums.values()), device), strict=True))
    whole, tokens = sums.pop("terms") or 1.0, int(sums.pop("tokens"))
    means = {"loss": sums.pop("loss") / whole} | {name: each / p.parts for name, each in sums.items()}
    if p.parts > 1:
        for gradient in (weight.grad for weight in model.parameters() if weight.grad is not None):
            gradient.mul_(p.devices / whole)  # a sum over parts, and over devices a mean
    if not math.isfinite(means["loss"]):
        raise UserError(
            f"training diverged: the loss is {means['loss']} at step {step + 1}; try a smaller lr than {p.lr}"
        )
    for weight, zero in held:
        if weight.grad is not None:
            weight.grad.masked_fill_(zero, 0)  # what does not move neither counts as length nor in the moments
    nn.utils.clip_grad_norm_(model.parameters(), p.clip)
    for stepper in steppers:
        stepper.step()
    for weight, zero in held:
        weight.data.masked_fill_(zero, 0)  # Muon moves every weight of a matrix
    model.zero_grad(set_to_none=True)
    return means, tokens


def zeros(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The weights that pruning may set to zero, and where they are."""
    weights = dict.fromkeys(matrix.parameter for matrix in anatomy.matrices(model).values())  # experts share one
    return [(weight, weight == 0) for weight in weights]


def mixed(precision: Precision) -> bool:
    if precision == "auto":
        if torch.cuda.is_available():
            return torch.cuda.is_bf16_supported()
        return faster_in_16_bits(torch.cpu.get_capabilities())
    return precision == "bfloat16"


def faster_in_16_bits(cpu: Mapping[str, Any]) -> bool:
    """Whether a CPU multiplies bfloat16 faster than float32; Intel's without AMX take twice as long."""
    amd = cpu.get("sse4a")
    return bool(cpu.get("amx_bf16") or (amd and cpu.get("avx512_bf16")))


def to_device(part: Any, device: torch.device) -> Any:
    """Every tensor of a part; what else is in it stays."""
    if isinstance(part, dict):
        return {name: to_device(value, device) for name, value in part.items()}
    return part.to(device) if isinstance(part, Tensor) else part


def count(part: Part) -> int:
    """Tokens in a part."""
    return (part if isinstance(part, Tensor) else part["ids"]).numel()
