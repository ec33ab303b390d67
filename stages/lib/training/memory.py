"""Whether a training fits into the memory of a device, asked when its first part is there and nothing is computed yet.

It takes, beside the models that are loaded, bytes:

    gradients     4 a trained weight
    moments       8 a trained weight of AdamW, 4 of Muon
    activations   4 (3 in mixed precision) sum_m (I_m + O_m) a token, over the blocks' matrices m but experts: what
                  one reads is kept for its gradient, what it writes for the norm, gate or attention behind it;
                  with checkpoint_activations those of one block twice, since they stand beside their gradients,
                  and 4 H a token and block
    logits        12 V a learnt token: logits, their log-softmax, and the gradient

fsdp divides gradients and moments by the devices, and holds two gathered blocks and what is in none. An estimate is
within a factor of 1.5 of what was measured (tests/lib/test_memory.py), so only what is above that is refused.
I = in_features, O = out_features, H = hidden, V = vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from stages.lib.frame.errors import UserError
from stages.lib.nets import anatomy
from stages.lib.text import packing
from stages.lib.training.config import Training
from stages.lib.training.muon import Muon
from stages.lib.training.optimizers import optimizers

MARGIN = 1.5  # how far the estimate may be off
Needs = dict[str, float]  # bytes


def guarded(batch: Callable[[int], Any], model: nn.Module, p: Training, mixed: bool) -> Callable[[int], Any]:
    """`batch`, the first part of which is refused if no device can train on it; the model must be a whole one here."""
    weights, blocks, words = kept(model, p), per_token(model, p, mixed), vocabulary(model)
    device = next(model.parameters()).device
    asked = False

    def part(index: int) -> Any:
        nonlocal asked
        found = batch(index)
        if not asked:
            asked = True
            needs = weights | activations(blocks, words, found)
            if index >= p.parts:
                needs.pop("moments")  # which a checkpoint has brought
            require(needs, p, available(device, p))
        return found

    return part


def require(needs: Needs, p: Training, free: float) -> None:
    total = sum(needs.values())
    if total <= MARGIN * free:
        return
    said = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in sorted(needs.items(), key=lambda each: -each[1]))
    helps = {
        "more `accumulation` or a smaller `batch_size`": p.part_size > 1,
        "`checkpoint_activations: true`": not p.checkpoint_activations,
        "`optimizer: muon`": p.optimizer != "muon",
        "`lora`": True,
        "more `devices` with `parallel: fsdp`": True,
    }
    raise UserError(
        f"training takes about {total / 1e9:.1f} GB on each device beside the models ({said}), and {free / 1e9:.1f} GB "
        f"are free; it helps to have {', '.join(name for name, does in helps.items() if does)}"
    )


def kept(model: nn.Module, p: Training) -> Needs:
    """What is there for every weight."""
    slots = {
        weight: 1 if isinstance(stepper, Muon) else 2
        for stepper in optimizers(model, p)
        for group in stepper.param_groups
        for weight in group["params"]
    }
    share = p.devices if p.parallel == "fsdp" else 1
    needs = {
        "gradients": 4 * sum(w.numel() for w in slots) / share,
        "moments": 4 * sum(w.numel() * count for w, count in slots.items()) / share,
    }
    if p.parallel == "fsdp":
        sizes = [sum(w.nbytes for w in block.parameters()) for block in anatomy.blocks(model)]
        needs["gathered weights"] = 2 * max(sizes) + sum(w.nbytes for w in model.parameters()) - sum(sizes)
    return needs


def per_token(model: nn.Module, p: Training, mixed: bool) -> float:
    """Bytes that the blocks keep of a token."""
    matrices = [anatomy.matrices_of(block).values() for block in anatomy.blocks(model)]
    sizes = [sum(m.in_features + m.out_features for m in own if m.expert is None) for own in matrices]
    every = [(3 if mixed else 4) * size for size in sizes]
    if not p.checkpoint_activations:
        return sum(every)
    config: Any = getattr(model, "config", None)
    return 2 * max(every) + 4 * len(every) * (config.get_text_config().hidden_size if config else 0)


def activations(blocks: float, vocabulary: int, part: Any) -> Needs:
    """What is there for every token of a part."""
    whole = {"ids": part} if isinstance(part, Tensor) else part
    return {"activations": blocks * whole["ids"].numel(), "logits": 12 * vocabulary * int(packing.learnt(whole))}


def vocabulary(model: Any) -> int:
    """Rows of the head."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return head.weight.shape[0] if head is not None else 0


def available(device: torch.device, p: Training) -> float:
    """Bytes that a process may still take there."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    import psutil

    return psutil.virtual_memory().available / p.devices
