"""What a user can put right, said in one place: the exception, and how a command ends with it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
    """Run `main` with the command line's arguments; a UserError is its message on stderr and exit code 1."""
    import cyclopts

    try:
        cyclopts.run(main)
    except UserError as error:
        sys.exit(str(error))
