"""Evaluate one variant: model + held-out records -> metrics + samples. See stages/eval/__init__.py."""

from pathlib import Path

import cyclopts

from stages.eval import TECHNIQUES
from stages.eval.parts import held_out, memory, spoken
from stages.lib.frame import files, params, tracking
from stages.lib.runtimes.base import file_bytes
from stages.lib.runtimes.open import open_runtime
from stages.lib.store import models


def main(variant: str, *, model: Path, documents: Path, problems: Path, out: Path) -> None:
    _, p = params.load("eval", variant)
    with tracking.run("eval", variant, p, out, inputs=[model, documents, problems]) as run:
        data = held_out.load(documents, problems)
        run.metrics["bytes"] = file_bytes(model)

        models.load_tokenizer(model)  # imports transformers, some 450 MB that are not the model's
        before = memory.reset_peak()
        runtime = open_runtime(model)
        samples = spoken.collect(runtime, data, p.accuracy)
        if before is not None:
            run.timings["peak_memory_bytes"] = memory.peak() - before

        parameters, tensor_bytes = runtime.size()
        run.metrics.update(parameters=parameters, bits_per_weight=8 * tensor_bytes / parameters)
        for name, technique in TECHNIQUES.items():
            result = run.metrics if technique.REPEATABLE else run.timings
            for key, value in technique.score(runtime, data, getattr(p, name)).items():
                (samples if isinstance(value, dict) else result)[key] = value

        files.write_json(out / "samples.json", samples)


if __name__ == "__main__":
    cyclopts.run(main)
