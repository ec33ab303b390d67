"""The learning rate over the steps of a training."""

import math

from stages.lib.training.config import Training


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
