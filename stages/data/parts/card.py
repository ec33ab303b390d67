"""The data card: what is in a record artefact, how much of it, and under which licence."""

from collections.abc import Mapping

from stages.data import Dataset


def write(variant: str, data: Dataset, metrics: Mapping[str, float]) -> str:
    """Markdown; the same data give the same bytes."""
    kinds = sorted(key.removeprefix("train_records_") for key in metrics if key.startswith("train_records_"))
    rows = [f"| {kind} | {metrics.get(f'train_records_{kind}', 0):,} | {metrics.get(f'held_out_records_{kind}', 0):,} |"
            for kind in kinds]  # fmt: skip
    return "\n".join(
        [
            f"# Data card: {variant}",
            "",
            f"Source `{data.source}`, technique `{data.method}`, licence: {data.licence}",
            "",
            f"{metrics['records_read']:,} records read, {metrics['records_too_short']:,} too short, "
            f"{metrics['records_duplicate']:,} duplicates or near-duplicates dropped.",
            f"Train {metrics['train_bytes']:,} bytes, held out {metrics['held_out_bytes']:,} bytes; "
            "no record is in both.",
            "",
            "| kind | train records | held-out records |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
