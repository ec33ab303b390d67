"""Prune one variant: dense model + tokens -> sparser or smaller model + metrics. See stages/prune/__init__.py."""

import copy
from pathlib import Path
from typing import Any

import cyclopts
import torch
from torch import nn

from stages.lib import artefacts, calibrate, losses, models, params, tracking, training
from stages.lib.tokens import held_out, require_tokenizer, sample
from stages.prune import _given


def main(variant: str, *, model: Path, tokens: Path, out: Path, checkpoints: Path) -> None:
    technique, p = params.load("prune", variant)
    with tracking.run("prune", variant, p, out, inputs=[model, tokens]) as run:
        artefacts.require_space(out, artefacts.size(model))
        require_tokenizer(tokens, model)
        net, tokenizer = models.load(model), models.load_tokenizer(model)
        calibrate.require_dense(net, f"prune.{variant}")
        unseen = held_out(tokens, p.held_out_rows)
        rows: Any = sample(tokens, p.calibration.rows, p.calibration.seed) if p.calibration else None
        before, code = copy.deepcopy(net), Path(__file__).with_name(f"{p.method}.py")

        if hasattr(technique, "score"):  # of rows, whatever is asked for: variants that differ in shape share them
            place = training.place(checkpoints, p.calibration, run.digests, code)
            net = technique.prune(net, _given.scores(technique, net, rows, p, place), p)
        elif hasattr(p, "training"):
            place = training.place(checkpoints, p, run.digests, code)
            net = technique.prune(net, _given.trainer(tokens, p.training, place), p)
            artefacts.remove(place)
        else:
            net = technique.prune(net, rows, p)

        run.metrics.update(zeros(net))
        if hasattr(technique, "ranks"):
            run.metrics["rank"] = technique.ranks(net)
            run.metrics["redundancy"] = redundancy(net, run.metrics["rank"])
        with artefacts.writing(out / "model") as folder:
            models.save(net, tokenizer, folder)
            stored = reload(net, folder)
            run.metrics |= losses.compare(models.logits(before), models.logits(stored), unseen)


def zeros(net: nn.Module) -> dict[str, float]:
    """Exact zeros, counted here on the result: in what a technique may change, and in the whole model."""
    prunable = [layer.weight for layer in calibrate.linears(net).values()]
    every = list(net.parameters())  # a tied weight appears once
    kept = sum(int(weight.count_nonzero()) for weight in every)
    return {
        "sparsity": 1 - sum(int(weight.count_nonzero()) for weight in prunable) / sum(w.numel() for w in prunable),
        "sparsity_model": 1 - kept / sum(weight.numel() for weight in every),
        "parameters": sum(weight.numel() for weight in every),
        "nonzero_parameters": kept,
    }


def redundancy(net: nn.Module, ranks: dict[str, int]) -> dict[str, float]:
    """The share of the rank a layer could have that it does not have."""
    return {name: 1 - ranks[name] / min(each.weight.shape) for name, each in calibrate.linears(net).items()}


def reload(net: nn.Module, folder: Path) -> Any:
    """The model as the next stage will find it; refused where it is not the one in memory."""
    stored: Any = models.load(folder)
    read = stored.state_dict()
    if wrong := [name for name, w in net.state_dict().items() if name not in read or not torch.equal(w, read[name])]:
        raise SystemExit(f"{folder} does not hold what was saved: {params.names(wrong)}")
    return stored


if __name__ == "__main__":
    cyclopts.run(main)
