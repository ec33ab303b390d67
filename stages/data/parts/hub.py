"""Data sets of the Hugging Face hub: rows of one split as a file, fetched by `datasets`.

Opens the network only because params name a data set and its commit.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.data import Hub
from stages.lib.frame import files
from stages.lib.frame.errors import UserError
from stages.lib.store import loading
from stages.lib.store.hub import go_online

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset, Features

BATCH = 1000  # rows


def download(name: str, hub: Hub, folder: Path) -> Path:
    """The rows as a .parquet in the folder; labels that are numbers with names become the names."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    file = folder / "rows.parquet"
    if file.exists():
        return file
    rows = load(name, hub)
    with files.writing(file) as partial:
        writer = None
        for table in rows.with_format("arrow").iter(BATCH):
            assert isinstance(table, pyarrow.Table)
            named = with_names(table, rows.features)
            writer = writer or ParquetWriter(partial, named.schema)
            writer.write_table(named)
        if writer is None:
            raise UserError(f"{name}, split '{hub.split}': no rows")
        writer.close()
    return file


def look_up(name: str, revision: str) -> tuple[str, str | None]:
    """(the commit of a branch, tag or commit, the licence that the data set's card names)."""
    go_online()
    from huggingface_hub import HfApi

    with loading.opening(f"{name}, {revision}, on the hub"):
        found = HfApi().dataset_info(name, revision=revision)
    licence = found.card_data.get("license") if found.card_data else None
    return str(found.sha), ", ".join(licence) if isinstance(licence, list) else licence


def load(name: str, hub: Hub) -> "Dataset":
    go_online()
    from datasets import Dataset, load_dataset

    with loading.opening(f"{name}, split '{hub.split}' of {hub.revision[:8]}"):
        rows = load_dataset(name, hub.subset, split=hub.split, revision=hub.revision)
    assert isinstance(rows, Dataset)
    return rows


def with_names(table: "pyarrow.Table", features: "Features") -> "pyarrow.Table":
    """Columns of numbered labels as texts; a label that is not known (-1) as null."""
    import pyarrow
    from datasets import ClassLabel

    for column, feature in features.items():
        if isinstance(feature, ClassLabel):
            numbers = table[column].to_pylist()
            names = [None if number is None or number < 0 else feature.names[number] for number in numbers]
            table = table.set_column(table.schema.names.index(column), column, pyarrow.array(names, pyarrow.string()))
    return table
