"""The one training loop: Muon or AdamW, warm-up and decay, accumulation, clipping, mixed precision, exact resume.

A batch is a function of the step alone and the optimizer's whole state is in the checkpoint, so a run that was killed
and started again ends in the very weights of one that was not.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from stages.lib import artefacts, calibrate, fake_quantize
from stages.lib.fake_quantize import FakeQuantize
from stages.lib.params import Params

Part = Tensor | dict[str, Any]  # token ids (B, T), or those as "ids" with what else a loss needs


class Training(Params):
    """How a model is trained; what it learns from is the technique's."""

    steps: PositiveInt
    batch_size: PositiveInt = 16  # rows a step, over all accumulated parts
    accumulation: PositiveInt = 1  # parts a batch is worked off in, to save memory
    lr: PositiveFloat = 3e-3
    optimizer: Literal["muon", "adamw"] = "muon"
    schedule: Literal["cosine", "wsd"] = "cosine"
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps
    decay: float = Field(0.2, gt=0, le=1)  # share of the steps at the end in which wsd goes down
    lr_floor: float = Field(0.05, ge=0, le=1)  # share of lr that is left at the end
    weight_decay: float = Field(0.1, ge=0)
    clip: PositiveFloat = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the hardware multiplies it
    keep_zeros: bool = False  # a pruned model's zeros stay zeros
    fake_quantize: FakeQuantize | None = None  # weights are rounded in every pass, and for good at the end
    checkpoint_seconds: PositiveInt = 60
    seed: NonNegativeInt = 0


def fit(
    model: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[Any], Tensor],
    p: Training,
    curve: list[dict[str, float]],
    checkpoints: Path,
) -> dict[str, float]:
    """Train in place; `batch(i)` gives part i of the run, `loss(part)` its mean loss. Returns this machine's speed.

    `checkpoints` is a folder that only this run (these inputs, params and code) may use; it is empty again at the end.
    """
    artefacts.require_space(checkpoints, 16 * sum(w.numel() for w in model.parameters()))  # weights, moments, result
    torch.manual_seed(p.seed)
    steppers, held = optimizers(model, p), zeros(model) if p.keep_zeros else []
    with fake_quantize.rounding(model, p.fake_quantize):
        first = restore(checkpoints, model, steppers, curve)
        model.train()
        started = saved = monotonic()
        seen = 0
        with progress(p.steps, first) as bar:
            for step in range(first, p.steps):
                value, tokens = update(model, steppers, batch, loss, p, step, held)
                seen += tokens
                curve.append({"step": step + 1, "loss": value, "lr": p.lr * rate(step, p)})
                bar.set_postfix_str(f"loss {value:.3f}, {seen / (monotonic() - started):,.0f} tok/s")
                bar.update()
                if monotonic() - saved > p.checkpoint_seconds:
                    checkpoint(checkpoints, model, steppers, curve)
                    saved = monotonic()
    model.eval()
    artefacts.remove(checkpoints)
    seconds = max(monotonic() - started, 1e-9)
    return {"train_seconds": seconds, "train_tokens_per_s": seen / seconds}


def place(checkpoints: Path, p: Params, digests: dict[Path, str], code: Path) -> Path:
    """The folder for one run's checkpoints: its name changes with the inputs, the params and the code."""
    identity = [*digests.values(), *(artefacts.digest(path) for path in (code, Path(__file__).parent))]
    return checkpoints / hashlib.sha256("".join([*identity, p.model_dump_json()]).encode()).hexdigest()[:16]


def update(
    model: nn.Module,
    steppers: list[torch.optim.Optimizer],
    batch: Any,
    loss: Any,
    p: Training,
    step: int,
    held: Sequence[tuple[Tensor, Tensor]] = (),
) -> tuple[float, int]:
    """One optimizer step, `held` weights left at zero; returns the mean loss and the number of tokens seen."""
    for group in (group for stepper in steppers for group in stepper.param_groups):
        group["lr"] = p.lr * rate(step, p)
    total, tokens, device = 0.0, 0, next(model.parameters()).device
    for index in range(step * p.accumulation, (step + 1) * p.accumulation):
        part = to_device(batch(index), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed(p)):
            value = loss(part) / p.accumulation
        value.backward()
        total += value.item()
        tokens += count(part)
    if not math.isfinite(total):
        raise SystemExit(f"training diverged: the loss is {total} at step {step + 1}; try a smaller lr than {p.lr}")
    for weight, zero in held:
        if weight.grad is not None:
            weight.grad.masked_fill_(zero, 0)  # what does not move neither counts as length nor in the moments
    nn.utils.clip_grad_norm_(model.parameters(), p.clip)
    for stepper in steppers:
        stepper.step()
    for weight, zero in held:
        weight.data.masked_fill_(zero, 0)  # Muon moves every weight of a matrix
    model.zero_grad(set_to_none=True)
    return total, tokens


def zeros(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The weights that pruning may set to zero, and where they are."""
    return [(layer.weight, layer.weight == 0) for layer in calibrate.linears(model).values()]


def rate(step: int, p: Training) -> float:
    """Share of lr at a step: linear warm-up, then cosine (Loshchilov & Hutter 2016, arXiv:1608.03983) or
    warm-up-stable-decay (Hu et al. 2024, arXiv:2404.06395) down to lr_floor."""
    warmup = round(p.warmup * p.steps)
    if step < warmup:
        return (step + 1) / warmup
    if p.schedule == "cosine":
        done = (step - warmup) / max(1, p.steps - warmup)
        return p.lr_floor + (1 - p.lr_floor) * (1 + math.cos(math.pi * done)) / 2
    left = (p.steps - step) / max(1, round(p.decay * p.steps))
    return p.lr_floor + (1 - p.lr_floor) * min(1.0, left)


def optimizers(model: nn.Module, p: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, if asked for, and AdamW (arXiv:1711.05101) for the rest.

    Muon's update is scaled to AdamW's root mean square (arXiv:2502.16982, eq. 4), so that one lr fits both. Gains and
    biases are not decayed. Fused: one kernel for all weights.
    """
    named = {name: w for name, w in model.named_parameters() if w.requires_grad}
    inner = [w for name, w in named.items() if p.optimizer == "muon" and w.ndim == 2 and ".layers." in name]
    rest = [w for w in named.values() if all(w is not other for other in inner)]
    matrices, vectors = [w for w in rest if w.ndim >= 2], [w for w in rest if w.ndim < 2]
    groups = [{"params": matrices, "weight_decay": p.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    steppers: list[torch.optim.Optimizer] = []
    if rest:  # of adapters, nothing is left for AdamW
        steppers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=p.lr, betas=(0.9, 0.95), fused=True))
    if inner:
        steppers.append(torch.optim.Muon(inner, lr=p.lr, weight_decay=p.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return steppers


def mixed(p: Training) -> bool:
    if p.precision == "auto":
        return torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
    return p.precision == "bfloat16"


def to_device(part: Any, device: torch.device) -> Any:
    """Every tensor of a part; what else is in it stays."""
    if isinstance(part, dict):
        return {name: to_device(value, device) for name, value in part.items()}
    return part.to(device) if isinstance(part, Tensor) else part


def count(part: Part) -> int:
    """Tokens in a part."""
    return (part if isinstance(part, Tensor) else part["ids"]).numel()


def progress(total: int, first: int) -> Any:
    import sys

    from tqdm import tqdm

    seconds = 1 if sys.stderr.isatty() else 5  # a log wants fewer lines than a terminal
    return tqdm(total=total, initial=first, mininterval=seconds, dynamic_ncols=True, unit="step")


def checkpoint(folder: Path, model: nn.Module, steppers: list[Any], curve: list[dict[str, float]]) -> None:
    """Weights, optimizer and random state as one safetensors file, the curve beside it; both or neither."""
    from safetensors.torch import save_file

    state = {f"weight.{name}": w.detach() for name, w in model.named_parameters() if w.requires_grad}
    for number, stepper in enumerate(steppers):
        for index, slots in stepper.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{index}.{slot}": value for slot, value in slots.items()}
    with artefacts.writing(folder) as temporary:
        save_file({k: v.contiguous() for k, v in state.items()} | random_state(), temporary / "state.safetensors")
        artefacts.write_json(temporary / "curve.json", curve)


def restore(folder: Path, model: nn.Module, steppers: list[Any], curve: list[dict[str, float]]) -> int:
    """Steps already done: 0, or those of the checkpoint, which is loaded into model, optimizers and curve."""
    if not (folder / "state.safetensors").is_file():
        return 0
    from safetensors.torch import load_file

    state = load_file(folder / "state.safetensors")
    with torch.no_grad():
        for name, w in model.named_parameters():
            if w.requires_grad:
                w.copy_(state[f"weight.{name}"])
    for number, stepper in enumerate(steppers):
        slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for name in state:
            if name.startswith(f"optimizer.{number}."):
                *_, index, slot = name.split(".")
                slots[int(index)][slot] = state[name]
        stepper.load_state_dict(stepper.state_dict() | {"state": dict(slots)})
    torch.set_rng_state(state["random.cpu"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random.cuda"])
    curve.extend(artefacts.read_json(folder / "curve.json"))
    return int(curve[-1]["step"])


def random_state() -> dict[str, Tensor]:
    state = {"random.cpu": torch.get_rng_state()}
    return state | ({"random.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
