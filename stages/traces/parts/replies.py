"""The replies that traces/rollouts wrote down, for what goes on from them."""

from pathlib import Path

from stages.lib.frame.errors import UserError
from stages.lib.store import records
from stages.lib.store.records import Record


def load(source: Path, needed: tuple[str, ...]) -> list[Record]:
    """All of them; a recording without one of the needed fields is refused."""
    rows = records.load(source / "records", "train")
    if missing := [name for name in needed if name not in rows[0]]:
        raise UserError(f"{source}: its records have no {missing[0]!r}: take the replies of traces/rollouts")
    return rows
