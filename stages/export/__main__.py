"""Export one variant: model artefact -> file of a runtime, read back and compared. See stages/export/__init__.py."""

from pathlib import Path
from typing import Any

import torch

from stages.export import Export
from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.nets import losses
from stages.lib.runtimes import base
from stages.lib.runtimes.base import Runtime
from stages.lib.runtimes.transformers import Transformers
from stages.lib.store import folders, loading, manifest, models
from stages.lib.store.tokens import held_out, sample


def main(
    variant: str, *, model: Path, tokens: Path, code: Path, out: Path, params_file: Path = params.PARAMS_FILE
) -> None:
    technique = params.load(Export, variant, params_file)
    with tracking.run("export", variant, technique, out, code, [model, tokens]) as run:
        files.require_space(out, 2 * files.size(model))
        net, tokenizer = technique.load(model), models.load_tokenizer(model)
        unseen, rows = held_out(tokens, technique.rows, model), torch.empty(0, 0, dtype=torch.int64)
        if calibration := technique.needs_rows():
            rows = sample(tokens, calibration.rows, calibration.seed, model)

        with files.writing(out / "model") as folder:
            technique.write(net, tokenizer, folder, rows)
            folders.finish(folder)
            config, most = net.config, technique.loss(net)
            del net  # two models are in memory at once, not three
            source, export = Transformers(model, loading.STORED), technique.open(folder)
            unseen = unseen[:, : technique.context(config)]
            run.metrics |= losses.compare(base.logits(source), base.logits(export), unseen)
            run.metrics |= size(export, folder) | described(technique, config)
            check(variant, technique, most, run.metrics, source)
            manifest.write(folder)


def size(export: Runtime, folder: Path) -> dict[str, float]:
    parameters, tensor_bytes = export.size()
    return {
        "parameters": parameters,
        "bytes": base.file_bytes(folder),
        "bits_per_weight": 8 * tensor_bytes / parameters,
    }


def described(technique: Export, config: Any) -> dict[str, Any]:
    """What a model card says of the format and of the network, and nobody after the export knows."""
    return {
        "format": technique.FORMAT.format_map(technique.model_dump()),
        "run": technique.RUN,
        "architecture": architecture(config),
        "vocabulary": config.vocab_size,
        "context": technique.context(config),
    }


def architecture(config: Any) -> str:
    shape = f"{config.model_type}: {config.num_hidden_layers} layers, width {config.hidden_size}"
    if not (kv_heads := getattr(config, "num_key_value_heads", None)):  # a state space has none
        return shape
    return f"{shape}, {config.num_attention_heads} heads, {kv_heads} key-value heads"


def check(variant: str, technique: Export, loss: float, metrics: dict[str, Any], source: Runtime) -> None:
    """Refuse a file that says something else than its source, or says it in more bytes: it is no export of it."""
    if not metrics["kl"] <= loss:  # also when it is not a number
        strays = f"kl {metrics['kl']:.3g} nats/token > max_kl {loss:g}"
        raise UserError(f"export.{variant} strays from {technique.model}: {strays}")
    parameters, tensor_bytes = source.size()
    bits = 8 * tensor_bytes / parameters
    if metrics["bits_per_weight"] > 1.01 * bits:  # norms stay 32 bits wide
        raise UserError(
            f"export.{variant} takes {metrics['bits_per_weight']:.2f} bits/weight, {technique.model} only {bits:.2f}: "
            "choose a smaller type or a denser parent"
        )


if __name__ == "__main__":
    command(main)
