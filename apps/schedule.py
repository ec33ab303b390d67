"""Retraining by the clock (infra/prefect.yaml) and whenever data change, until Ctrl-C: python -m apps.schedule

Starts the servers of `make ui` unless they run, creates Prefect's work pool, deploys flows/retrain.py to it, and works
off what is due.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from apps import ui
from flows import server, sources
from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError, command
from stages.lib.frame.params import Tree

POOL, DEPLOYMENT, FILE = "orchard", "retrain/retrain", "infra/prefect.yaml"
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


def main(*, every: float = 60) -> None:
    """
    Args:
        every: Seconds between two looks at the data. Those that change are used when they have stayed as they are
            from one look to the next.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sources.read(params.read())  # before anything starts
    try:
        with ExitStack() as stack:
            if not os.environ.get(server.ADDRESS) and not server.is_prefect(server.USUAL):
                stack.enter_context(ui.servers(ui.MLFLOW, ui.PREFECT))
            server.start()
            prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
            prefect("deploy", "--all", "--prefect-file", FILE)
            close_killed()
            worker = subprocess.Popen([*PREFECT, "worker", "start", "--pool", POOL], env=environment())
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
            print(f"Prefect  {server.require()}\n{FILE} says when; Ctrl-C ends it.", flush=True)
            watch(worker, every)
    except KeyboardInterrupt:
        return
    raise UserError("Prefect's worker ended by itself: its last lines above say why")


def environment() -> dict[str, str]:
    return os.environ | {"ORCHARD_HOME": str(Path.cwd()), "PYTHONPATH": str(Path.cwd())}


def prefect(*arguments: str) -> None:
    done = subprocess.run([*PREFECT, *arguments], env=environment(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"prefect {' '.join(arguments[:2])}: {(done.stderr or done.stdout).strip()}")


def close_killed() -> None:
    """Runs of an earlier worker that was killed would wait for their end for ever."""
    from flows import history

    with history.alone(wait=True):
        history.close_killed()


def watch(worker: subprocess.Popen, every: float) -> None:
    """Until the worker ends, have it run once more whenever the data have changed."""
    from prefect.deployments import run_deployment

    known = before = stamp(params.read())
    while worker.poll() is None:
        time.sleep(every)
        now = stamp(params.read())
        if now == before != known:
            known = now
            run_deployment(DEPLOYMENT, timeout=0, as_subflow=False)
        before = now


def stamp(tree: Tree) -> list[tuple[str, int, int]]:
    """Name, size and time of every file that `data` reads or that is copied there from this machine."""
    places = [Path(entry["source"]) for entry in tree.get("data", {}).values()]
    places += [Path(origin) for origin in sources.read(tree).values() if "://" not in origin]
    found = sorted({file for place in places for file in [place, *files.inside(place)] if file.is_file()})
    return [(str(file), (seen := file.stat()).st_size, seen.st_mtime_ns) for file in found]


if __name__ == "__main__":
    command(main)
