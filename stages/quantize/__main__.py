"""Quantize one variant: model + tokens -> packed model + metrics of what was reloaded. See this package's docstring."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.nets import calibrate, losses
from stages.lib.store import loading, models
from stages.lib.store.tokens import held_out, sample
from stages.quantize import Quantization
from stages.quantize.parts import compressed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-4  # nats/token between the model in memory and the same model reloaded


def main(
    variant: str, *, model: Path, tokens: Path, code: Path, out: Path, params_file: Path = params.PARAMS_FILE
) -> None:
    technique = params.load(Quantization, variant, params_file)
    dtype, calibration = getattr(torch, technique.dtype), technique.calibration
    with tracking.run("quantize", variant, technique, out, code, [model, tokens]) as run, compressed.quiet():
        files.require_space(out, files.size(model))
        net, tokenizer = models.load(model), models.load_tokenizer(model)
        calibrate.require_dense(net, f"quantize.{variant}")
        compressed.require_packable(net, variant, technique)
        unseen, rows = held_out(tokens, technique.held_out_rows, model), torch.empty(0, 0, dtype=torch.int64)
        if calibration:
            rows = sample(tokens, calibration.rows, calibration.seed, model)

        net = technique.quantize(compressed.unfused(net), rows)
        compressed.round_rest(net, dtype)
        expected = losses.evaluate(net, unseen)
        with files.writing(out / "model") as folder:
            models.save(compressed.pack(net, dtype), tokenizer, folder)
            del net  # one model of 32 bits is in memory at once
            gc.collect()  # the libraries' hooks hold it in a circle
            parent, reloaded = models.load(model, loading.STORED), models.load(folder)
            run.metrics |= losses.compare(models.logits(parent), models.logits(reloaded), unseen) | size(parent, folder)
            check(variant, expected, run.metrics, model)


def check(variant: str, expected: float, measured: dict[str, float], parent: Path) -> None:
    """Refuse a file that says something else than the model in memory did, or is no smaller than its parent."""
    if not abs(measured["loss_after"] - expected) <= TOLERANCE:  # also when it is not a number
        after = measured["loss_after"]
        raise UserError(f"quantize.{variant}: reloaded, the model has loss {after}, in memory it had {expected}")
    if measured["bytes"] >= (before := sum(file.stat().st_size for file in parent.glob("*.safetensors"))):
        raise UserError(f"quantize.{variant} takes {measured['bytes']:,} bytes, its parent {before:,}")


def size(parent: "PreTrainedModel", folder: Path) -> dict[str, float]:
    """What the tensors of the files take. Weights of the parent that are not there as they were are the quantized ones,
    and what is there in their place is what they take."""
    from safetensors import safe_open
    from transformers.core_model_loading import revert_weight_conversion

    dense = {name: weight.shape for name, weight in revert_weight_conversion(parent, parent.state_dict()).items()}
    stored: dict[str, int] = {}
    kept: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict)
                tensor = tensors.get_tensor(name)
                stored[name] = tensor.nbytes
                if tensor.shape == dense.get(name) and tensor.is_floating_point():
                    kept.add(name)
    tied = set(parent.all_tied_weights_keys)
    changed = [shape.numel() for name, shape in dense.items() if name not in kept | tied]
    packed = [count for name, count in stored.items() if name not in kept]
    return {
        "bits_per_weight": 8 * sum(packed) / sum(changed),
        "bits_per_weight_model": 8 * sum(stored.values()) / sum(weight.numel() for weight in parent.parameters()),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    }


if __name__ == "__main__":
    command(main)
