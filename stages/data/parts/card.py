"""The data card: what is in a record artefact, how much of it, and under which licence."""

from collections import Counter
from collections.abc import Mapping

from stages.data import Dataset, Hub

SHOWN = 40  # kinds, or files left out


def write(
    variant: str,
    data: Dataset,
    metrics: Mapping[str, float],
    records: Mapping[str, Counter[str]],
    left_out: list[str],
) -> str:
    """Markdown; the same data give the same bytes. `records` counts those of each kind in each split."""
    train, held_out = records["train"], records["held_out"]
    kinds = sorted(train | held_out)
    return "\n".join(
        [
            f"# Data card: {variant}",
            "",
            f"Source `{data.source}`{on_the_hub(data.hub)}, technique `{data.method}`, licence: {data.licence}",
            "",
            f"{metrics['records_read']:,} records read, {metrics['records_too_short']:,} too short or empty, "
            f"{metrics['records_duplicate']:,} duplicates or near-duplicates dropped.",
            f"Train {metrics['train_bytes']:,} bytes, held out {metrics['held_out_bytes']:,} bytes; "
            "no record is in both.",
            *([f"{len(left_out):,} files left out: {shown(left_out)}."] if left_out else []),
            "",
            "| kind | train records | held-out records |",
            "|---|---|---|",
            *(f"| {kind} | {train[kind]:,} | {held_out[kind]:,} |" for kind in kinds[:SHOWN]),
            *([f"| {len(kinds) - SHOWN:,} more | | |"] if len(kinds) > SHOWN else []),
            "",
        ]
    )


def on_the_hub(hub: Hub | None) -> str:
    return f" of the Hugging Face hub (revision {hub.revision}, split {hub.split})" if hub else ""


def shown(names: list[str]) -> str:
    more = [f"{len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return ", ".join([*(f"`{name}`" for name in names[:SHOWN]), *more])
