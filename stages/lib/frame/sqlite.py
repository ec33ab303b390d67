"""Databases that others keep in a file of SQLite: whether one is whole, and a damaged one kept aside."""

from contextlib import closing
from itertools import count
from pathlib import Path

PARTS = ("-journal", "-wal", "-shm", "")  # ends of what belongs to a database; itself last


def whole(database: Path, table: str) -> bool:
    """Whether SQLite finds nothing wrong in it, and that table, the last to be made, has a row; raises where the
    database is only busy."""
    import sqlite3

    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True, timeout=60)) as opened:
            sound = opened.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
            return sound and opened.execute(f"SELECT 1 FROM {table}").fetchone() is not None
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorname in ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR"):  # the last: no such table
            return False
        raise


def shrink(database: Path) -> None:
    """Give back the room of what was deleted."""
    import sqlite3

    with closing(sqlite3.connect(database)) as opened:
        opened.execute("VACUUM")


def keep_aside(database: Path) -> Path:
    """Rename it, with what belongs to it; under which name."""
    aside = next(name for n in count(1) if not (name := database.with_name(f"{database.name}.damaged-{n}")).exists())
    for end in PARTS:
        if (part := database.with_name(database.name + end)).exists():
            part.rename(aside.with_name(aside.name + end))
    return aside


def place(address: str) -> Path | None:
    """The file of SQLAlchemy's address; None where there is none."""
    from sqlalchemy.engine import make_url

    url = make_url(address)
    return (
        Path(url.database)
        if url.drivername.startswith("sqlite") and url.database not in (None, "", ":memory:")
        else None
    )
