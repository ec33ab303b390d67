"""A disk that takes nothing more is told in a line, whatever libraries wrap around it. Real ones refuse here."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy

from stages.lib.frame.errors import UserError, command


def full_file():
    Path("/dev/full").write_text("x")


def wrapped():
    try:
        full_file()
    except OSError as error:
        raise RuntimeError("the library could not go on") from error


def full_database():
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as opened:
        opened.execute(sqlalchemy.text("PRAGMA max_page_count = 2"))
        opened.execute(sqlalchemy.text("CREATE TABLE a (x)"))
        opened.execute(sqlalchemy.text("INSERT INTO a VALUES (randomblob(100000))"))


def read_only_database():
    sqlite3.connect("file:/dev/null?mode=ro&immutable=1", uri=True).execute("CREATE TABLE a (x)")


REFUSALS = [
    (full_file, "No space left on device"),
    (wrapped, "No space left on device"),
    (full_database, "SQLite: database or disk is full"),
    (read_only_database, "SQLite: attempt to write a readonly database"),
]


@pytest.mark.parametrize(("work", "said"), REFUSALS)
def test_a_disk_that_takes_nothing_more_is_told_in_a_line(monkeypatch, work, said):
    monkeypatch.setattr("sys.argv", ["program"])
    with pytest.raises(SystemExit) as stop:
        command(work)
    assert said in str(stop.value) and "what is finished is kept" in str(stop.value)
    assert "\n" not in str(stop.value)


def test_other_errors_are_not_the_disks(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program"])

    def missing():
        Path("/no/such/file").read_text()

    with pytest.raises(FileNotFoundError):
        command(missing)

    def told():
        raise UserError("line one\nline two")

    with pytest.raises(SystemExit, match="line one\nline two"):
        command(told)
