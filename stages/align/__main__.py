"""Align, one variant: base model + problems + examples -> model that answers. See stages/align/__init__.py."""

import copy
from pathlib import Path

import cyclopts
import torch

from stages.lib.frame import files, params, tracking
from stages.lib.nets import packed
from stages.lib.store import adapters, models, records
from stages.lib.text import packing
from stages.lib.training import checkpoint, loop


def main(variant: str, *, model: Path, problems: Path, examples: Path, out: Path, checkpoints: Path) -> None:
    technique, p = params.load("align", variant)

    with tracking.run("align", variant, p, out, inputs=[model, problems, examples]) as run:
        net, tokenizer = models.load(model), models.load_tokenizer(model)
        asked = records.load(problems, "held_out")
        held_out = loop.to_device(packing.batches(tokenizer, asked, p.context, p.held_out_rows, seed=0)(0), net.device)
        place = checkpoint.place(checkpoints, p, run.digests, Path(__file__).parent)
        before = copy.deepcopy(net)

        torch.manual_seed(p.training.seed)
        adapted = adapters.wrap(net, p.lora, run.digests[model])
        run.timings |= technique.align(
            adapted, tokenizer, records.load(problems, "train"), records.load(examples, "train"), p, run.curve, place
        )

        with files.writing(out / "model") as folder:
            if p.lora:
                adapters.save(adapted, folder / adapters.FOLDER)  # before it is merged
            net = adapters.merge(adapted, p.lora)
            run.metrics |= compare(before, net, held_out)
            models.write(net, tokenizer, folder)


@torch.no_grad()
def compare(before: torch.nn.Module, after: torch.nn.Module, held_out: packing.Batch) -> dict[str, float]:
    """Reply loss of both models and how far the second went from the first, nats/token on reply tokens."""
    p_NV, q_NV = (packed.logits(model, held_out)[0].log_softmax(-1) for model in (before, after))
    return {
        "reply_loss_before": packed.loss(before, held_out).item(),
        "reply_loss_after": packed.loss(after, held_out).item(),
        "kl_reference": (q_NV.exp() * (q_NV - p_NV)).sum(-1).mean().item(),
    }


if __name__ == "__main__":
    cyclopts.run(main)
