"""Prune one variant: dense model + tokens -> sparser or smaller model + metrics. See stages/prune/__init__.py."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.nets import anatomy, calibrate, losses
from stages.lib.store import loading, models
from stages.lib.store.tokens import held_out, load_for, sample
from stages.prune import Pruning
from stages.prune.parts.given import Given

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def main(
    variant: str,
    *,
    model: Path,
    tokens: Path,
    code: Path,
    checkpoints: Path,
    out: Path,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    technique = params.load(Pruning, variant, params_file)
    with tracking.run("prune", variant, technique, out, code, [model, tokens]) as run:
        files.require_space(out, files.size(model))
        unseen = held_out(tokens, technique.held_out_rows, model)
        net, tokenizer = models.load(model, loading.STORED), models.load_tokenizer(model)
        calibrate.require_dense(net, f"prune.{variant}")

        calibration = technique.calibration
        rows = torch.empty(0, 0, dtype=torch.int64)
        if calibration:
            rows = sample(tokens, calibration.rows, calibration.seed, model)
        scores = run.place(checkpoints, calibration or technique)  # variants with the same rows share them
        train = load_for(model, tokens, "train")
        given = Given(rows, train, tokenizer, scores, run.place(checkpoints, technique))
        net = technique.prune(net, given)
        given.forget()

        run.metrics.update(zeros(net))
        if ranks := technique.ranks(net):
            run.metrics |= {"rank": ranks, "redundancy": redundancy(net, ranks)}
        with files.writing(out / "model") as folder:
            models.save(net, given.tokenizer, folder)
            net = reload(net, folder)
            parent = models.logits(models.load(model, loading.STORED))  # now: no more than two are in memory at once
            if given.tokenizer is not tokenizer:
                kept = numbers(tokenizer, given.tokenizer)
                run.metrics |= vocabulary(tokenizer, kept, unseen)
                parent, unseen = within(parent, kept), held_out(tokens, technique.held_out_rows, folder)
            run.metrics |= losses.compare(parent, models.logits(net), unseen)


def zeros(net: nn.Module) -> dict[str, float]:
    """Exact zeros, counted here on the result: in all that multiplies inside the blocks, and in the whole model."""
    multiplying = anatomy.multiplying(net).values()
    every = list(net.parameters())  # a tied weight appears once
    kept = sum(int(weight.count_nonzero()) for weight in every)
    return {
        "sparsity": 1 - sum(int(w.count_nonzero()) for w in multiplying) / sum(w.numel() for w in multiplying),
        "sparsity_model": 1 - kept / sum(weight.numel() for weight in every),
        "parameters": sum(weight.numel() for weight in every),
        "nonzero_parameters": kept,
    }


def redundancy(net: nn.Module, ranks: dict[str, int]) -> dict[str, float]:
    """The share of the rank a matrix could have that it does not have."""
    return {name: 1 - ranks[name] / min(matrix.weight.shape) for name, matrix in anatomy.matrices(net).items()}


def numbers(whole: "PreTrainedTokenizerFast", part: "PreTrainedTokenizerFast") -> Tensor:
    """What the tokens of the smaller vocabulary are called in the whole one, (V,)."""
    old, new = whole.get_vocab(), part.get_vocab()
    return torch.tensor([old[token] for token in sorted(new, key=new.__getitem__)])


def vocabulary(whole: "PreTrainedTokenizerFast", kept_V: Tensor, rows_NT: Tensor) -> dict[str, float]:
    dropped = 1 - torch.isin(rows_NT, kept_V).double().mean().item()
    return {"vocab_size_before": len(whole), "vocab_size": len(kept_V), "dropped": dropped}


def within(logits: losses.Logits, kept_V: Tensor) -> losses.Logits:
    """A model that reads and says nothing but these tokens, by their places among them."""
    return lambda ids_BT: logits(kept_V[ids_BT])[..., kept_V]


def reload(net: nn.Module, folder: Path) -> "PreTrainedModel":
    """The model as the next stage will find it; refused where it is not the one in memory."""
    stored = models.load(folder, loading.STORED)
    read = stored.state_dict()
    if wrong := [name for name, w in net.state_dict().items() if name not in read or not torch.equal(w, read[name])]:
        raise UserError(f"{folder} does not hold what was saved: {params.names(wrong)}")
    return stored


if __name__ == "__main__":
    command(main)
