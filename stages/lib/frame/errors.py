"""What a user can put right, said in one place: the exception, and how a command ends with it."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
DATABASE = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR_WRITE")


class UserError(Exception):
    """The place, the wrong value and the allowed ones, in one line each."""


@contextmanager
def about(place: str) -> Iterator[None]:
    """What goes wrong within is said to be wrong there."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def command(main: Callable[..., Any]) -> None:
    """Run `main` with the command line's arguments; what a person is told goes to stderr, with exit code 1."""
    import cyclopts

    try:
        cyclopts.run(main)
    except Exception as error:
        if message := told(error):
            sys.exit(message)
        raise


def told(error: Exception) -> str:
    """What a person can put right: a UserError's message, or that a disk takes nothing more; else ""."""
    if isinstance(error, UserError):
        return str(error)
    if reason := of_the_disk(error):
        return f"{reason}; what is finished is kept: run it again when there is room, and it may be written"
    return ""


def of_the_disk(error: BaseException | None) -> str:
    """What is wrong with the disk, if it is behind an error that libraries may have wrapped; else ""."""
    while error:
        if isinstance(error, OSError) and error.errno in DISK:
            return str(error)
        if getattr(error, "sqlite_errorname", "").startswith(DATABASE):
            return f"a database of SQLite: {error}"
        error = error.__cause__ or error.__context__
    return ""
