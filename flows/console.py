"""A stage's output as it comes: lines to the log, progress (text that ends in a carriage return) to the terminal, and
to the log every half a minute, where Prefect's UI shows it."""

import logging
import sys
from collections.abc import Callable
from threading import Lock
from time import monotonic

from flows import server
from stages.lib.frame import tracking

terminal = Lock()
ERASE = "\r\033[K"
PATIENCE = 30  # seconds between two lines of progress in the log
IDLE = {  # logger -> how Prefect's messages begin that only repeat what the terminal shows anyway
    "prefect.task_runs": ("Task run failed with state", "Finished in state Cached", "Finished in state NotReady"),
    "prefect.flow_runs": ("Finished in state",),
}


def begin() -> None:
    """Say which servers are in use, which must be there, and nothing twice from here on."""
    tracking.require_store()
    print(f"MLflow: {tracking.store()}   Prefect: {server.require()}", file=sys.stderr)
    quieten()


def quieten() -> None:
    """A line for a stage that did something, none for those that had nothing to do or wait for one that failed."""
    for name, beginnings in IDLE.items():
        logging.getLogger(name).addFilter(lambda record, idle=beginnings: not record.getMessage().startswith(idle))


class Output:
    """Takes bytes in any portions. Progress of stages that run side by side shares one line, each after its name."""

    def __init__(self, name: str, log: Callable[[str], None]):
        self.name, self.log, self.rest, self.last, self.told = name, log, b"", "", monotonic()

    def __call__(self, chunk: bytes) -> None:
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        for line in lines:
            self.line(line)
        if b"\r" in self.rest:
            self.rest = self.rest.rstrip(b"\r").rpartition(b"\r")[2] + b"\r"
            self.progress(text(self.rest))

    def line(self, line: bytes) -> None:
        if shown := tracking.redact(text(line)):
            self.last = shown
            with terminal:
                sys.stderr.write(ERASE * sys.stderr.isatty())
                self.log(shown)

    def progress(self, shown: str) -> None:
        if monotonic() - self.told > PATIENCE:
            self.told = monotonic()
            self.line(shown.encode())
        if sys.stderr.isatty():
            with terminal:
                sys.stderr.write(f"{ERASE}{self.name} {shown}")
                sys.stderr.flush()


def text(line: bytes) -> str:
    """What a terminal would show of it in the end."""
    return line.decode(errors="replace").rstrip().rpartition("\r")[2]
