"""Eval, one measure of one model: model (+ records) -> metrics, timings, samples. See stages/eval/__init__.py."""

from pathlib import Path

from stages.eval import Measure
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
    params_file: Path = params.PARAMS_FILE,
) -> None:
    technique = params.load(Measure, measure, params_file)
    parents = [model, records] if records else [model]
    with tracking.run("eval", f"{name}/{measure}", technique, out, code, parents) as run:
        held_out = load(records, "held_out") if records else []
        if records and not held_out:
            raise UserError(f"{records / 'held_out.jsonl'} is empty: there is nothing to measure on")
        scores = technique.evaluate(model, held_out)
        run.metrics |= scores.metrics
        run.timings |= scores.timings
        if scores.samples:
            files.write_json(out / "samples.json", scores.samples)


if __name__ == "__main__":
    command(main)
