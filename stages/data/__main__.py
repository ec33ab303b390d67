"""Data, one variant: source -> clean, deduplicated, split records and their card. See stages/data/__init__.py."""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from stages.data import Dataset
from stages.data.parts import card, clean, hub, reading
from stages.lib.frame import files, params, processes, progress, tracking
from stages.lib.frame.errors import UserError, command
from stages.lib.store.records import SPLITS
from stages.lib.text import duplicates


def main(
    variant: str,
    *,
    code: Path,
    checkpoints: Path,
    out: Path,
    params_file: Path = params.PARAMS_FILE,
    workers: int = processes.available(),
) -> None:
    technique = params.load(Dataset, variant, params_file)
    source = technique.source  # not an argument: a path may hold what a shell reads
    place = f"{params_file}: {technique.section()}.{variant}"
    if not technique.hub and not source.exists():
        raise UserError(f"{place}.source is '{source}', which does not exist")

    with tracking.run("data", variant, technique, out, code, [] if technique.hub else [source]) as run:
        shards = run.place(checkpoints, technique)
        if technique.hub:
            source = hub.download(str(source), technique.hub, shards)
        if left_out := technique.left_out(source):
            print(f"{source}: {len(left_out)} files left out, which are not read: {', '.join(left_out[:8])}")
        files.require_space(shards, 2 * files.size(source))  # of clean records, and again as they are handed on
        with files.writing(out / "records") as folder:
            counts, kinds = save(technique, source, folder, shards, workers)
            require_enough(technique, counts, place)
            technique.require(kinds, place)
        run.metrics |= counts | {"files_left_out": len(left_out)}
        with files.writing(out / "README.md") as file:
            file.write_text(card.write(variant, technique, run.metrics, kinds, left_out))
        files.remove(shards)


def save(
    technique: Dataset, source: Path, folder: Path, shards: Path, workers: int
) -> tuple[dict[str, int], dict[str, Counter[str]]]:
    """Write train.jsonl and held_out.jsonl; returns (what is counted, records of each kind in each split)."""
    shards.mkdir(parents=True, exist_ok=True)
    copies, seen = duplicates.Copies(shards / "copies.db"), duplicates.Seen(file=shards / "seen.db")
    rows, cleaned, read, clean_ones = technique.records(source), list[Path](), 0, 0
    with progress.bar(files.size(source), "B", scale=True) as bar:
        for file in clean.shards(rows, shards, technique.least(), technique.held_out, technique.seed, workers):
            count, candidates = clean.load(file)
            copies.count(candidate.same for candidate in candidates)
            cleaned.append(file)
            read, clean_ones = read + count, clean_ones + len(candidates)
            bar.update(reading.Source.bytes_read - bar.n)

    kept = {f"{split}_{unit}": 0 for split in SPLITS for unit in ("records", "bytes")}
    kinds = {split: Counter[str]() for split in SPLITS}
    with ExitStack() as opened:
        out = {split: opened.enter_context((folder / f"{split}.jsonl").open("w", encoding="utf-8")) for split in SPLITS}
        for row in clean.distinct(cleaned, copies, seen):
            out[row.split].write(row.line)
            kinds[row.split][row.kind] += 1
            kept[f"{row.split}_records"] += 1
            kept[f"{row.split}_bytes"] += row.weight
            if row.family is not None:
                name = f"{row.split}_records_{row.family}"
                kept[name] = kept.get(name, 0) + 1
    stay = sum(kept[f"{split}_records"] for split in SPLITS)
    left = {"records_too_short": read - clean_ones, "records_duplicate": clean_ones - stay}
    return {"records_read": read} | left | kept, kinds


def require_enough(technique: Dataset, counts: dict[str, int], place: str) -> None:
    """Refuse a source that leaves too little to learn from, or a split of nothing."""
    read, short, least = counts["records_read"], counts["records_too_short"], technique.least()
    usable = read - short - counts["records_duplicate"]
    if usable < technique.min_records:
        why = f"have fewer than {least} characters" if least else "are empty, or two replies that are the same"
        raise UserError(
            f"{place}.min_records is {technique.min_records}; {technique.source} has {usable} usable records: "
            f"{short} of {read} {why}{' (min_characters)' if least else ''}, "
            f"{counts['records_duplicate']} are duplicates"
        )
    if not counts["train_records"] or not counts["held_out_records"]:
        sizes = f"{counts['train_records']} train and {counts['held_out_records']} held-out records"
        raise UserError(f"{place}.held_out is {technique.held_out}, which gives {sizes}; both need one or more")


if __name__ == "__main__":
    command(main)
