"""Where a training that was killed goes on: its weights, optimizers, random state and curve, in a folder of its own."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.lib.frame import files


def save(folder: Path, model: nn.Module, steppers: list[Any], curve: list[dict[str, float]]) -> None:
    """Weights, optimizer and random state as one safetensors file, the curve beside it; both, whole, or neither."""
    from safetensors.torch import save_file

    state = {f"weight.{name}": w.detach() for name, w in model.named_parameters() if w.requires_grad}
    for number, stepper in enumerate(steppers):
        for index, slots in stepper.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{index}.{slot}": value for slot, value in slots.items()}
    with files.sealing(folder) as temporary:
        save_file({k: v.contiguous() for k, v in state.items()} | random_state(), temporary / "state.safetensors")
        (temporary / "curve.json").write_text(json.dumps(curve))  # the names in their order, which curve.csv keeps


def restore(folder: Path, model: nn.Module, steppers: list[Any], curve: list[dict[str, float]]) -> int:
    """Steps already done: 0, or those of the checkpoint, which is loaded into model, optimizers and curve."""
    if not files.sealed(folder):
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
    curve.extend(files.read_json(folder / "curve.json"))
    return int(curve[-1]["step"])


def random_state() -> dict[str, Tensor]:
    state = {"random.cpu": torch.get_rng_state()}
    return state | ({"random.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
