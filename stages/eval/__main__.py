"""Evaluate one variant: model + held-out records -> metrics + samples. See stages/eval/__init__.py."""

from pathlib import Path

import cyclopts

from stages.eval import TECHNIQUES, _footprint, _held_out, _samples
from stages.lib import artefacts, models, params, runtimes, tracking


def main(variant: str, *, model: Path, documents: Path, problems: Path, out: Path) -> None:
    _, p = params.load("eval", variant)
    with tracking.run("eval", variant, p, out, inputs=[model, documents, problems]) as run:
        data = _held_out.load(documents, problems)
        run.metrics["bytes"] = runtimes.file_bytes(model)

        models.load_tokenizer(model)  # imports transformers, some 450 MB that are not the model's
        before = _footprint.reset_peak()
        runtime = runtimes.open_runtime(model)
        samples = _samples.collect(runtime, data, p.accuracy)
        if before is not None:
            run.timings["peak_memory_bytes"] = _footprint.peak() - before

        parameters, tensor_bytes = runtime.size()
        run.metrics.update(parameters=parameters, bits_per_weight=8 * tensor_bytes / parameters)
        for name, technique in TECHNIQUES.items():
            result = run.metrics if technique.REPEATABLE else run.timings
            for key, value in technique.score(runtime, data, getattr(p, name)).items():
                (samples if isinstance(value, dict) else result)[key] = value

        artefacts.write_json(out / "samples.json", samples)


if __name__ == "__main__":
    cyclopts.run(main)
