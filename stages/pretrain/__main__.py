"""Pretrain, one variant: token rows -> base model and its training curve. See stages/pretrain/__init__.py."""

from functools import partial
from pathlib import Path

import cyclopts

from stages.lib.frame import params, tracking
from stages.lib.nets import losses
from stages.lib.store import models
from stages.lib.store import tokens as rows
from stages.lib.training import checkpoint, loop


def main(variant: str, *, tokens: Path, tokenizer: Path, out: Path, checkpoints: Path) -> None:
    technique, p = params.load("pretrain", variant)

    with tracking.run("pretrain", variant, p, out, inputs=[tokens, tokenizer]) as run:
        vocabulary = models.load_tokenizer(tokenizer)
        model = technique.build(vocabulary, p).to(models.device())
        rows.require_tokenizer(tokens, tokenizer)
        held_out = rows.held_out(tokens, p.held_out_rows)

        run.metrics["loss_before"] = losses.evaluate(model, held_out)
        if p.training:
            place = checkpoint.place(checkpoints, p, run.digests, Path(__file__).parent)
            size = p.training.batch_size // p.training.accumulation
            batch = partial(rows.step_batch, rows.load(tokens, "train"), size)
            run.timings |= loop.fit(model, batch, partial(technique.loss, model), p.training, run.curve, place)
        else:
            run.curve.append({"step": 0, "loss": run.metrics["loss_before"]})
        run.metrics["loss_after"] = losses.evaluate(model, held_out)
        run.metrics["parameters"] = model.num_parameters()

        models.save(model, vocabulary, out / "model")


if __name__ == "__main__":
    cyclopts.run(main)
