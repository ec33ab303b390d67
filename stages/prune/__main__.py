"""Prune one variant: dense model + tokens -> sparser model + metrics. See stages/prune/__init__.py."""

from pathlib import Path

import cyclopts
from torch import nn

from stages.lib import artefacts, calibrate, losses, models, params, tracking
from stages.lib.tokens import held_out, require_tokenizer, sample


def main(variant: str, *, model: Path, tokens: Path, out: Path) -> None:
    technique, p = params.load("prune", variant)
    with tracking.run("prune", variant, p, out, inputs=[model, tokens]) as run:
        artefacts.require_space(out, artefacts.size(model))
        net, tokenizer = models.load(model), models.load_tokenizer(model)
        calibrate.require_dense(net, f"prune.{variant}")
        require_tokenizer(tokens, model)
        unseen = held_out(tokens, p.held_out_rows)
        rows = sample(tokens, p.calibration.rows, p.calibration.seed) if p.calibration else None

        run.metrics["loss_before"] = losses.evaluate(net, unseen)
        net = technique.prune(net, rows, p)
        run.metrics["loss_after"] = losses.evaluate(net, unseen)
        run.metrics.update(zeros(net))

        models.save(net, tokenizer, out / "model")


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


if __name__ == "__main__":
    cyclopts.run(main)
