"""Data, one variant: source -> clean, deduplicated, split records and their card. See stages/data/__init__.py."""

from collections import Counter
from pathlib import Path

import cyclopts

from stages.data.parts import card, clean
from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError
from stages.lib.store import records


def main(variant: str, *, source: Path, out: Path) -> None:
    technique, p = params.load("data", variant)

    with tracking.run("data", variant, p, out, inputs=[source]) as run:
        if not source.exists():
            raise UserError(f"params.yaml: data.{variant}.source is '{source}', which does not exist")
        raw = [clean.normalise(record) for record in technique.read(source, p)]
        kept = [record for record in raw if clean.worth_keeping(record)]
        unique = clean.without_near_duplicates(clean.without_duplicates(kept))
        if len(unique) < p.min_records:
            raise UserError(f"{source}: {len(unique)} usable records, data.{variant}.min_records is {p.min_records}")
        train, held_out = clean.split(unique, p.held_out, p.seed)
        if not train or not held_out:
            sizes = f"{len(train)} train, {len(held_out)} held-out records"
            raise UserError(f"params.yaml: data.{variant}: {sizes}; it needs more data or another `held_out` share")

        run.metrics |= {"records_read": len(raw), "records_too_short": len(raw) - len(kept)}
        run.metrics |= {"records_duplicate": len(kept) - len(unique)}
        for name, rows in {"train": train, "held_out": held_out}.items():
            run.metrics |= {f"{name}_records": len(rows), f"{name}_bytes": sum(clean.weight(row) for row in rows)}
            by_kind = Counter(row.get("family") or row["source"] for row in rows)
            run.metrics |= {f"{name}_records_{kind}": count for kind, count in sorted(by_kind.items())}

        with files.writing(out / "records") as folder:
            records.save(folder, train=train, held_out=held_out)
            (folder / "README.md").write_text(card.write(variant, p, run.metrics))


if __name__ == "__main__":
    cyclopts.run(main)
