"""Export one variant: model artefact -> file of a runtime, read back and compared. See stages/export/__init__.py."""

from pathlib import Path
from typing import Any

import cyclopts
import torch

from stages.export import Export
from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError
from stages.lib.nets import losses
from stages.lib.runtimes.base import Runtime, file_bytes
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import manifest
from stages.lib.store.tokens import held_out, require_tokenizer, sample
from stages.report.parts import model_card


def main(variant: str, *, model: Path, tokens: Path, out: Path) -> None:
    technique, p = params.load("export", variant)
    with tracking.run("export", variant, p, out, inputs=[model, tokens]) as run:
        files.require_space(out, 2 * files.size(model))
        source, net = open_runtime(model), technique.load(model)
        require_tokenizer(tokens, model)
        unseen = held_out(tokens, p.rows)
        seen = getattr(p, "calibration", None)
        rows = [sample(tokens, seen.rows, seen.seed)] if seen else []

        with files.writing(out / "model") as folder:
            technique.write(net, source.tokenizer, folder, p, *rows)
            export = open_runtime(folder)
            run.metrics |= losses.compare(each(source), each(export), unseen, batch=1) | footprint(export, folder)
            refuse(variant, p, run.metrics, source)
            card = model_card.text(technique, variant, p, net.config, source.tokenizer, run.metrics)
            (folder / "README.md").write_text(card, encoding="utf-8")
            manifest.write(folder)


def each(runtime: Runtime) -> losses.Logits:
    """One row at a time, as runtimes take them."""
    return lambda ids_1T: torch.from_numpy(runtime.logits(ids_1T[0].tolist()))[None]


def footprint(export: Runtime, folder: Path) -> dict[str, Any]:
    parameters, tensor_bytes = export.size()
    return {
        "parameters": parameters,
        "bytes": file_bytes(folder),
        "bits_per_weight": 8 * tensor_bytes / parameters,
    }


def refuse(variant: str, p: Export, metrics: dict[str, Any], source: Runtime) -> None:
    """A file that says something else than its source, or says it in more bytes, is not an export of it."""
    if not metrics["kl"] <= p.max_kl:  # also when it is not a number
        raise UserError(
            f"export.{variant} strays from {p.model}: kl {metrics['kl']:.3g} nats/token > max_kl {p.max_kl}"
        )
    parameters, tensor_bytes = source.size()
    bits = 8 * tensor_bytes / parameters
    if metrics["bits_per_weight"] > 1.01 * bits:  # norms stay 32 bits wide
        raise UserError(
            f"export.{variant} takes {metrics['bits_per_weight']:.2f} bits/weight, {p.model} only {bits:.2f}: "
            "choose a smaller type or a denser parent"
        )


if __name__ == "__main__":
    cyclopts.run(main)
