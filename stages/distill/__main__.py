"""Distill, one variant: student + traces -> taught student. See stages/distill/__init__.py."""

from pathlib import Path

import cyclopts

from stages.lib import losses, models, params, tracking, training
from stages.lib import tokens as rows
from stages.lib import traces as recorded


def main(variant: str, *, model: Path, traces: Path, tokens: Path, out: Path, checkpoints: Path) -> None:
    technique, p = params.load("distill", variant)

    with tracking.run("distill", variant, p, out, inputs=[model, traces, tokens]) as run:
        student, tokenizer = models.load(model), models.load_tokenizer(model)
        rows.require_tokenizer(tokens, model)
        if (traces / "about.json").exists():
            recorded.require_tokenizer(traces, rows.about(tokens)["tokenizer"])
        held_out = rows.held_out(tokens, p.held_out_rows)
        place = training.place(checkpoints, p, [model, traces], Path(__file__).parent)

        run.metrics["loss_before"] = losses.evaluate(student, held_out)
        batch = technique.batches(tokenizer, traces, p)
        run.timings |= training.fit(
            student, batch, lambda part: technique.loss(student, part, p), p.training, run.curve, place
        )
        run.metrics["loss_after"] = losses.evaluate(student, held_out)
        run.metrics["parameters"] = student.num_parameters()
        run.metrics["tokens_seen"] = p.training.steps * p.training.accumulation * training.count(batch(0))

        models.save(student, tokenizer, out / "model")


if __name__ == "__main__":
    cyclopts.run(main)
