"""Data, one variant: source -> clean, deduplicated, split records and their card. See stages/data/__init__.py."""

from collections import Counter
from pathlib import Path

from stages.data import Dataset
from stages.data.parts import card, clean
from stages.lib.frame import files, params, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.store import records


def main(variant: str, *, code: Path, out: Path, params_file: Path = params.PARAMS_FILE) -> None:
    technique = params.load(Dataset, variant, params_file)
    source = technique.source  # not an argument: a path may hold what a shell reads
    place = f"{params_file}: data.{variant}"
    if not source.exists():
        raise UserError(f"{place}.source is '{source}', which does not exist")

    with tracking.run("data", variant, technique, out, code, [source]) as run:
        if left_out := technique.left_out(source):
            print(f"{source}: {len(left_out)} files left out, which are not read: {', '.join(left_out[:8])}")
        raw = [clean.normalise(record) for record in technique.records(source)]
        kept = [record for record in raw if clean.worth_keeping(record, technique.least())]
        unique = clean.without_near_duplicates(clean.without_duplicates(kept))
        counts = {
            "records_read": len(raw),
            "records_too_short": len(raw) - len(kept),
            "records_duplicate": len(kept) - len(unique),
        }
        if len(unique) < technique.min_records:
            least = technique.least()
            why = f"have fewer than {least} characters" if least else "are empty, or two replies that are the same"
            short = f"{counts['records_too_short']} of {len(raw)} {why}"
            raise UserError(
                f"{place}.min_records is {technique.min_records}; {source} has {len(unique)} usable records: "
                f"{short}{' (min_characters)' if least else ''}, {counts['records_duplicate']} are duplicates"
            )
        train, held_out = clean.split(unique, technique.held_out, technique.seed)
        if not train or not held_out:
            sizes = f"{len(train)} train and {len(held_out)} held-out records"
            raise UserError(f"{place}.held_out is {technique.held_out}, which gives {sizes}; both need one or more")

        run.metrics |= counts | {"files_left_out": len(left_out)}
        for name, rows in {"train": train, "held_out": held_out}.items():
            run.metrics |= {f"{name}_records": len(rows), f"{name}_bytes": sum(clean.weight(row) for row in rows)}
            families = Counter(row["family"] for row in rows if "family" in row)
            run.metrics |= {f"{name}_records_{family}": count for family, count in sorted(families.items())}

        with files.writing(out / "records") as folder:
            records.save(folder, train=train, held_out=held_out)
        with files.writing(out / "README.md") as file:
            file.write_text(card.write(variant, technique, run.metrics, train, held_out, left_out))


if __name__ == "__main__":
    command(main)
