"""Traces, one variant: the teacher's solutions or distributions, recorded. See stages/traces/__init__.py."""

from pathlib import Path

import cyclopts

from stages.lib import artefacts, models, params, records, tracking
from stages.lib import tokens as rows
from stages.lib import traces as store


def main(variant: str, *, model: Path, problems: Path, tokens: Path, out: Path) -> None:
    technique, p = params.load("traces", variant)

    with tracking.run("traces", variant, p, out, inputs=[model, problems, tokens]) as run:
        rows.require_tokenizer(tokens, model)
        if store.distributions(problems):
            store.require_tokenizer(problems, rows.about(tokens)["tokenizer"])
        asked = problems if store.distributions(problems) else records.load(problems, "train")
        teacher, tokenizer, seen = models.load(model), models.load_tokenizer(model), rows.load(tokens, "train")
        about = {
            "technique": p.model_dump(mode="json"),
            "teacher": artefacts.digest(model),
            "tokenizer": rows.about(tokens)["tokenizer"],
            "tokens": artefacts.digest(tokens),
        }
        with artefacts.writing(out / "records") as folder:
            run.metrics |= store.save(folder, about, technique.record(teacher, tokenizer, asked, seen, p))


if __name__ == "__main__":
    cyclopts.run(main)
