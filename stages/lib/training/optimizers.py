"""Muon or AdamW, and which weights each of them moves."""

import torch
from torch import nn

from stages.lib.nets import anatomy
from stages.lib.training.config import Training
from stages.lib.training.muon import Muon


def optimizers(model: nn.Module, p: Training, dtype: torch.dtype = torch.float32) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, if asked for, and AdamW (arXiv:1711.05101) for the rest, fused experts
    among it, which are no matrices. One lr fits both. Gains and biases are not decayed. Fused: one kernel for all
    weights. `dtype` is that of Muon's products.
    """
    trained = [w for w in model.parameters() if w.requires_grad]
    blocks = {w for block in anatomy.blocks(model) for w in block.parameters()}
    inner = [w for w in trained if p.optimizer == "muon" and w.ndim == 2 and w in blocks]
    moved = set(inner)
    rest = [w for w in trained if w not in moved]
    matrices, vectors = [w for w in rest if w.ndim >= 2], [w for w in rest if w.ndim < 2]
    groups = [{"params": matrices, "weight_decay": p.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    steppers: list[torch.optim.Optimizer] = []
    if rest:  # of adapters, nothing is left for AdamW
        steppers.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=p.lr, betas=(0.9, 0.95), fused=True))
    if inner:
        steppers.append(Muon(inner, p.lr, p.weight_decay, dtype))
    return steppers
