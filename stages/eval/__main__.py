"""Eval, one measure of one model: model (+ records) -> metrics, timings, samples. See stages/eval/__init__.py."""

from pathlib import Path

from stages.eval import Beside, Measure
from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.store.records import load


def main(
    measure: str,
    name: str,
    *,
    model: Path,
    code: Path,
    out: Path,
    records: Path | None = None,
    reference: Path | None = None,
    checkpoints: Path | None = None,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    technique = params.load(Measure, measure, params_file)
    parents = [each for each in (model, records, reference) if each]
    with tracking.run("eval", f"{name}/{measure}", technique, out, code, parents) as run:
        held_out = load(records, "held_out") if records else []
        if records and not held_out:
            raise UserError(f"{records / 'held_out.jsonl'} is empty: there is nothing to measure on")
        beside = Beside(reference, run.place(checkpoints, technique)) if reference and checkpoints else None
        scores = technique.evaluate(model, held_out, beside)
        run.metrics |= scores.metrics
        run.timings |= scores.timings
        if scores.samples:
            files.write_json(out / "samples.json", scores.samples)


if __name__ == "__main__":
    command(main)
