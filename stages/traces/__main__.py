"""Traces, one variant: the teacher's solutions or distributions, recorded. See stages/traces/__init__.py."""

from pathlib import Path

from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import command
from stages.lib.store import traces
from stages.traces import Recording


def main(
    variant: str,
    *,
    source: Path,
    code: Path,
    checkpoints: Path,
    out: Path,
    model: Path | None = None,
    params_file: Path = params.PARAMS_FILE,
) -> None:
    technique = params.load(Recording, variant, params_file)
    inputs = [model, source] if model else [source]
    with tracking.run("traces", variant, technique, out, code, inputs) as run:
        about = {"technique": technique.model_dump(mode="json")} | technique.made_of(model, source)
        teacher = technique.open(model, checkpoints)
        with files.writing(out / "records") as folder:
            run.metrics |= traces.save(folder, about, technique.record(teacher, source))
        run.metrics |= technique.measure(teacher, out / "records")


if __name__ == "__main__":
    command(main)
