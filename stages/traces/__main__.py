"""Traces, one variant: the teacher's solutions or distributions, recorded. See stages/traces/__init__.py."""

from pathlib import Path

import cyclopts

from stages.lib.frame import files, params, tracking
from stages.lib.store import models, records
from stages.lib.store import tokens as rows
from stages.lib.store import traces as store


def main(variant: str, *, model: Path, problems: Path, tokens: Path, out: Path, checkpoints: Path) -> None:
    technique, p = params.load("traces", variant)

    with tracking.run("traces", variant, p, out, inputs=[model, problems, tokens]) as run:
        rows.require_tokenizer(tokens, model)
        if store.distributions(problems):
            store.require(problems, tokenizer=rows.about(tokens)["tokenizer"], tokens=files.digest(tokens))
        asked = problems if store.distributions(problems) else records.load(problems, "train")
        seen = rows.load(tokens, "train")
        if hasattr(technique, "open_teacher"):
            teacher = technique.open_teacher(model, checkpoints, p)
        else:
            teacher = models.load(model)
        about = {
            "technique": p.model_dump(mode="json"),
            "teacher": files.digest(model),
            "tokenizer": rows.about(tokens)["tokenizer"],
            "tokens": files.digest(tokens),
        }
        tokenizer = models.load_tokenizer(model)
        with files.writing(out / "records") as folder:
            run.metrics |= store.save(folder, about, technique.record(teacher, tokenizer, asked, seen, p))
        if "rows" in run.metrics and not store.distributions(problems):  # a mixture is no one teacher's
            run.metrics |= store.fidelity(out / "records", teacher, p.temperature)
        run.metrics |= getattr(teacher, "spent", {})


if __name__ == "__main__":
    cyclopts.run(main)
