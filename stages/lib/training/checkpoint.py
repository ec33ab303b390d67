"""Where a training that was killed goes on: its weights, optimizers, random state and curve, in a folder of its own."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.lib.frame import files
from stages.lib.training import distributed

Spent = dict[str, float]  # seconds and tokens so far


def save(folder: Path, model: nn.Module, steppers: list[Any], curve: list[dict[str, float]], spent: Spent) -> None:
    """Weights, optimizer and random state as safetensors, the curve beside them; all, whole, or nothing."""
    state = trained(model) | random_state()
    for number, stepper in enumerate(steppers):
        for index, slots in stepper.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{index}.{slot}": value for slot, value in slots.items()}
    with distributed.sealing(folder) as temporary:
        distributed.write(state, temporary)
        if distributed.rank() == 0:
            # the names in their order, which curve.csv keeps
            (temporary / "curve.json").write_text(json.dumps({"curve": curve, "spent": spent}))


def restore(folder: Path, model: nn.Module, steppers: list[Any], curve: list[dict[str, float]], spent: Spent) -> int:
    """Steps already done: 0, or those of the checkpoint, which is loaded into model, optimizers, curve and spent,
    whatever number of processes wrote it."""
    if not distributed.decided(distributed.rank() == 0 and files.sealed(folder)):
        return 0
    state, there = trained(model) | random_state(), distributed.kept(folder)
    slots: list[dict[int, dict[str, Tensor]]] = [defaultdict(dict) for _ in steppers]
    weights = [[w for group in stepper.param_groups for w in group["params"]] for stepper in steppers]
    for name in (name for name in there if name.startswith("optimizer.")):
        _, number, index, slot = name.split(".")
        weight = weights[int(number)][int(index)].detach()
        state[name] = torch.zeros_like(weight) if there[name] == weight.shape else torch.zeros(there[name])
        slots[int(number)][int(index)][slot] = state[name]
    state = {name: value for name, value in state.items() if name in there}  # no random.cuda, where none was
    distributed.read(state, folder)
    for stepper, found in zip(steppers, slots, strict=True):
        stepper.load_state_dict(stepper.state_dict() | {"state": dict(found)})
    torch.set_rng_state(state["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in state:
        torch.cuda.set_rng_state(state["random.cuda"])
    told = files.read_json(folder / "curve.json")
    curve.extend(told["curve"])
    spent.update(told["spent"])
    return int(curve[-1]["step"])


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {f"weight.{name}": w.detach() for name, w in model.named_parameters() if w.requires_grad}


def random_state() -> dict[str, Tensor]:
    state = {"random.cpu": torch.get_rng_state()}
    return state | ({"random.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})
