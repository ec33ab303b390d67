"""Export one variant: model artefact -> file of a runtime, read back and compared. See stages/export/__init__.py."""

from pathlib import Path
from typing import Any

import cyclopts
import torch

from stages.export import Export, _card, _dense
from stages.lib import artefacts, params, runtimes, tracking
from stages.lib.runtimes import Runtime
from stages.lib.tokens import held_out, require_tokenizer


def main(variant: str, *, model: Path, tokens: Path, out: Path) -> None:
    technique, p = params.load("export", variant)
    with tracking.run("export", variant, p, out, inputs=[model, tokens]) as run:
        artefacts.require_space(out, 2 * artefacts.size(model))
        source, dense = runtimes.open_runtime(model), _dense.load(model)
        require_tokenizer(tokens, model)
        unseen = held_out(tokens, p.rows)

        with artefacts.writing(out / "model") as folder:
            technique.write(dense, source.tokenizer, folder, p)
            export = runtimes.open_runtime(folder)
            run.metrics.update(compare(source, export, unseen) | footprint(export, folder))
            refuse(variant, p, run.metrics, source)
            card = _card.text(variant, p, dense.config, source.tokenizer, run.metrics)
            (folder / "README.md").write_text(card, encoding="utf-8")


def compare(source: Runtime, export: Runtime, rows_NT: torch.Tensor) -> dict[str, float]:
    """Means over rows: KL(source || export), equal top tokens, next-token losses; V = vocabulary."""
    per_row = []
    for ids_T in rows_NT:
        p_TV, q_TV = (torch.from_numpy(r.logits(ids_T.tolist())).log_softmax(-1) for r in (source, export))
        kl = (p_TV.exp() * (p_TV - q_TV)).sum(-1).mean()
        same_top = (p_TV.argmax(-1) == q_TV.argmax(-1)).float().mean()
        losses = [torch.nn.functional.nll_loss(each[:-1], ids_T[1:]) for each in (p_TV, q_TV)]
        per_row.append(torch.stack([kl, same_top, *losses]))
    means = torch.stack(per_row).double().mean(0).tolist()
    return dict(zip(("kl", "same_top", "loss_source", "loss_export"), means, strict=True))


def footprint(export: Runtime, folder: Path) -> dict[str, Any]:
    parameters, tensor_bytes = export.size()
    files = [*folder.glob("*.gguf"), *folder.glob("*.safetensors")]
    size = sum(file.stat().st_size for file in files)
    return {"parameters": parameters, "bytes": size, "bits_per_weight": 8 * tensor_bytes / parameters}


def refuse(variant: str, p: Export, metrics: dict[str, Any], source: Runtime) -> None:
    """A file that says something else than its source, or says it in more bytes, is not an export of it."""
    if not metrics["kl"] <= p.max_kl:  # also when it is not a number
        raise SystemExit(
            f"export.{variant} strays from {p.model}: kl {metrics['kl']:.3g} nats/token > max_kl {p.max_kl}"
        )
    parameters, tensor_bytes = source.size()
    bits = 8 * tensor_bytes / parameters
    if metrics["bits_per_weight"] > 1.01 * bits:  # norms stay 32 bits wide
        raise SystemExit(
            f"export.{variant} takes {metrics['bits_per_weight']:.2f} bits/weight, {p.model} only {bits:.2f}: "
            "choose a smaller type or a denser parent"
        )


if __name__ == "__main__":
    cyclopts.run(main)
