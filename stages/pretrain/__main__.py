"""Pretrain, one variant: token rows -> base model and its training curve. See stages/pretrain/__init__.py."""

from functools import partial
from pathlib import Path

from stages.lib.frame import params, tracking
from stages.lib.frame.errors import command
from stages.lib.nets import losses
from stages.lib.store import models
from stages.lib.store import tokens as rows
from stages.lib.training import distributed, loop
from stages.pretrain import Pretraining


def main(
    variant: str,
    *,
    tokens: Path,
    tokenizer: Path,
    code: Path,
    checkpoints: Path,
    out: Path,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    arguments = dict(locals())
    technique = params.load(Pretraining, variant, params_file)
    with tracking.run("pretrain", variant, technique, out, code, [tokens, tokenizer]) as run:
        distributed.start(main, arguments, technique.training)
        rows.require_tokenizer(tokens, tokenizer)
        vocabulary = models.load_tokenizer(tokenizer)
        model = models.place(technique.build(vocabulary))
        held_out = rows.held_out(tokens, technique.held_out_rows, tokenizer)

        run.metrics["loss_before"] = losses.evaluate(model, held_out)
        if training := technique.training:
            batch = rows.batches(rows.load(tokens, "train"), training.part_size, training.seed)
            place = run.place(checkpoints, technique)
            run.timings |= loop.fit(model, batch, partial(technique.loss, model), training, run.curve, place)
        else:
            run.curve.append({"step": 0, "loss": run.metrics["loss_before"]})
        run.metrics["loss_after"] = losses.evaluate(model, held_out)
        run.metrics["parameters"] = model.num_parameters()

        models.save(model, vocabulary, out / "model")


if __name__ == "__main__":
    command(main)
