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
from stages.lib.training import checkpoint
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
) -> dict[str, float]:
    """Train in place; `batch(i)` gives part i of the run, `loss(part)` its mean loss, alone or with measures, which the
    curve then shows too. Returns this machine's speed.

    `checkpoints` is a folder that only this run (these inputs, params and code) may use; it is empty again at the end.
    `watch` may say why it makes no sense to go on. `cycle`: steps on one batch of rollouts, which belong to the weights
    that wrote them, so no checkpoint parts them.
    """
    files.require_space(checkpoints, 16 * sum(w.numel() for w in model.parameters()))  # weights, moments, result
    torch.manual_seed(p.seed)
    steppers = optimizers(model, p, torch.bfloat16 if mixed(p.precision) else torch.float32)
    held = zeros(model) if p.keep_zeros else []
    with rounding.rounding(model, p.fake_quantize):
        first = checkpoint.restore(checkpoints, model, steppers, curve)

        def go_on() -> None:
            if reason := watch(curve):
                checkpoint.save(checkpoints, model, steppers, curve)
                raise UserError(f"training stopped after step {len(curve)}: {reason}; its weights are in {checkpoints}")

        go_on()
        model.train()
        started = saved = monotonic()
        trained = 0
        with progress.bar(p.steps, "step", first) as bar:
            for step in range(first, p.steps):
                means, tokens = update(model, steppers, batch, loss, p, step, held)
                trained += tokens
                curve.append({"step": step + 1, "loss": means.pop("loss"), "lr": p.lr * rate(step, p)} | means)
                bar.set_postfix_str(f"loss {curve[-1]['loss']:.3f}, {trained / (monotonic() - started):,.0f} tok/s")
                bar.update()
                go_on()
                if (step + 1) % cycle == 0 and monotonic() - saved > p.checkpoint_seconds:
                    checkpoint.save(checkpoints, model, steppers, curve)
                    saved = monotonic()
    model.eval()
    files.remove(checkpoints)
    seconds = max(monotonic() - started, 1e-9)
    return {"train_seconds": seconds, "train_tokens_per_s": trained / seconds}


def update(
    model: nn.Module,
    steppers: list[torch.optim.Optimizer],
    batch: Callable[[int], Any],
    loss: Callable[[Any], Loss],
    p: Training,
    step: int,
    held: Sequence[tuple[Tensor, Tensor]] = (),
) -> tuple[dict[str, float], int]:
    """One optimizer step, `held` weights left at zero; returns means, of "loss" and measures, and how many tokens."""
    for group in (group for stepper in steppers for group in stepper.param_groups):
        group["lr"] = p.lr * rate(step, p)
    means, tokens, device = {"loss": 0.0}, 0, next(model.parameters()).device
    for index in range(step * p.accumulation, (step + 1) * p.accumulation):
        part = to_device(batch(index), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed(p.precision)):
            result = loss(part)
            value, measures = result if isinstance(result, tuple) else (result, {})
            value = value / p.accumulation
        value.backward()
        means["loss"] += value.item()
        for name, measure in measures.items():
            means[name] = means.get(name, 0.0) + measure.item() / p.accumulation
        tokens += count(part)
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
