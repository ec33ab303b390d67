"""The same work on many pieces, by several processes: results in the order of the pieces, and few of them in memory."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from threading import Thread
from time import sleep
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")

SHELLS = ("sh", "dash", "bash", "zsh", "fish", "ksh")
AHEAD = 2  # pieces that wait for each process


def available() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def pieces(items: Iterable[Piece], size: Callable[[Piece], int], limit: int) -> Iterator[list[Piece]]:
    """The items in lists that end where they reach a size."""
    piece: list[Piece] = []
    total = 0
    for item in items:
        piece.append(item)
        if (total := total + size(item)) >= limit:
            yield piece
            piece, total = [], 0
    if piece:
        yield piece


def in_order(work: Callable[[Piece], Result], pieces: Iterable[Piece], processes: int) -> Iterator[Result]:
    """work(piece) of every piece; a single piece, or all for a single process, without starting another."""
    pieces = iter(pieces)
    first = list(islice(pieces, 2))
    if processes == 1 or len(first) < 2:
        yield from map(work, chain(first, pieces))
        return
    waiting: deque[Future[Result]] = deque()
    spawn = multiprocessing.get_context("spawn")  # a fork would inherit the threads' locks
    with ProcessPoolExecutor(processes, spawn, end_with_the_stage) as pool:
        for piece in chain(first, pieces):
            waiting.append(pool.submit(work, piece))
            if len(waiting) > AHEAD * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def end_with_the_stage() -> None:
    """A process whose stage was killed would wait for ever, or write where the next run writes."""
    Thread(target=follow, daemon=True).start()


def end_with_dvc() -> None:
    """Where DVC runs this stage, and DVC is killed: the stage would go on, and write where the next run writes."""
    if "DVC_STAGE" not in os.environ or multiprocessing.parent_process():
        return  # a person started it; or a flow did, whose children end with it anyway
    import psutil

    parents = psutil.Process().parents()
    dvc = next((each for each in parents if each.name() not in SHELLS), parents[0])
    Thread(target=follow_process, args=[dvc.is_running], daemon=True).start()


def follow_process(is_running: Callable[[], bool]) -> None:
    while is_running():
        sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def follow() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)
