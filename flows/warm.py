"""Run DVC stages in children of one warm process: what every stage imports (about 7 s) is imported once.

The child calls DVC as `dvc repro --single-item` does, with one change: a command `python -m stages.X ...` runs in this
process instead of a cold shell. It ends with the flow, even when the flow is killed: nothing writes afterwards.
"""

import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Lock, Thread
from types import ModuleType
from typing import Any

PRELOAD = [
    *("dvc.repo.reproduce", "dvc.repo.plots", "dvc.stage.run", "dvc.cachemgr", "dvc.lock", "scmrepo.git", "cyclopts"),
    *("codecarbon", "mlflow", "mlflow.store.tracking.sqlalchemy_store"),
    *("torch", "transformers.models.llama.modeling_llama"),
]
STARTING, STOPPED = Lock(), Event()
RUNNING: set[BaseProcess] = set()
STATES = {0: "Completed", 3: "Cached", 4: "Restored"}  # exit code -> what happened; Restored: from DVC's run-cache


def start(preload: list[str] | None = None) -> None:
    """Begin importing in the background. Importing only: a thread or a CUDA context would not survive the fork."""
    sys.modules["__main__"] = ModuleType("__main__")  # or every child would import the flow, and with it Prefect, again
    multiprocessing.set_forkserver_preload(["stages", *(PRELOAD if preload is None else preload), __name__])
    forkserver.ensure_running()


def reproduce(stage: str, environment: dict[str, str], tell: Callable[[bytes], None]) -> str | None:
    """Bring one stage up to date, handing its output to `tell` as it comes; the state it ends in, None if it fails."""
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(stage, environment, writer), name=stage)
    with STARTING:
        if STOPPED.is_set():
            return None
        process.start()
        RUNNING.add(process)
    writer.close()
    while chunk := os.read(reader.fileno(), 65536):
        tell(chunk)
    process.join()
    RUNNING.discard(process)
    if (code := process.exitcode or 0) < 0:
        out_of_memory = (
            ", as the system does with what needs more memory than there is" if code == -signal.SIGKILL else ""
        )
        tell(f"{signal.Signals(-code).name} ended it{out_of_memory}\n".encode())
    return STATES.get(process.exitcode or 0)


@contextmanager
def stopping() -> Iterator[None]:
    """What ends the flow before its stages (Ctrl-C, SIGTERM) ends them too: Prefect would wait until they are done."""
    STOPPED.clear()
    try:
        yield
    except BaseException:
        with STARTING:
            STOPPED.set()
            for process in list(RUNNING):
                assert process.pid
                with suppress(ProcessLookupError):  # it has not begun, or is done
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
        raise


def child(stage: str, environment: dict[str, str], writer: Connection) -> None:
    os.setsid()
    Thread(target=end_with_the_flow, daemon=True).start()
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(repro(stage))


def end_with_the_flow() -> None:
    parent = parent_process()
    assert parent
    parent.join()
    os.killpg(0, signal.SIGKILL)


def repro(stage: str) -> int:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    commands: list[str] = []
    run._run = here(run._run, commands)
    distrust_cache()
    try:
        with Repo(_wait_for_lock=True) as repo:
            repo.scm_context.quiet = True  # no advice about git after every stage
            changed = repo.reproduce(targets=[stage], single_item=True)  # type: ignore[call-arg]
    except DvcException as error:
        if not isinstance(cause := error.__cause__ or error, StageCmdFailedError):  # of that the stage has said more
            print(cause, file=sys.stderr)
        return 1
    return 0 if commands else 4 if changed else 3


@cache
def distrust_cache() -> None:
    """Have DVC hash what its cache holds before it is used: it takes for whole every file that is read-only, and every
    record of a run that is YAML, and so gives a damaged stage back as a finished one. Hashed, such a file is removed,
    and the stage runs."""
    from dvc.stage.cache import StageCache, _get_cache_hash, _get_stage_hash
    from dvc.utils.serialize import EncodingError
    from dvc_data.hashfile.db import HashFileDB
    from dvc_data.hashfile.db.local import LocalHashFileDB
    from dvc_data.hashfile.state import StateNoop

    read, newest = StageCache._load_cache, StageCache._load

    def check(self: LocalHashFileDB, oid: str, check_hash: bool = True, _info: dict[str, Any] | None = None) -> Any:
        known, self.state = self.state, StateNoop()  # it takes a file for the same by its size and times
        try:
            return HashFileDB.check(self, oid, check_hash, _info)
        finally:
            self.state = known

    def load(self: StageCache, key: str, value: str) -> Any:
        try:
            found = read(self, key, value)
        except EncodingError:
            found = {}
        if found is not None and _get_cache_hash(found) != value:
            Path(self._get_cache_path(key, value)).unlink()
            return None
        return found

    def load_newest(self: StageCache, stage: Any) -> Any:
        if key := _get_stage_hash(stage):
            with suppress(OSError):
                Path(self._get_cache_dir(key)).rmdir()  # if its records are all gone: DVC would fail there
        return newest(self, stage)

    LocalHashFileDB.check, StageCache._load_cache, StageCache._load = check, load, load_newest


def here(shell: Callable[..., None], seen: list[str]) -> Callable[..., None]:
    """DVC's `_run(executable, command, **kwargs of Popen)`, with stage modules run in this process."""
    from dvc.stage.exceptions import StageCmdFailedError

    def _run(executable: str | None, command: str, **kwargs: Any) -> None:
        seen.append(command)
        words = shlex.split(command)
        if words[:2] != ["python", "-m"] or not words[2].startswith("stages."):
            return shell(executable, command, **kwargs)
        os.environ.update(kwargs["env"])
        os.chdir(kwargs["cwd"])
        sys.path.insert(0, kwargs["cwd"])
        if status := execute(words[2], words[3:]):
            raise StageCmdFailedError(command, status)
        return None

    return _run


def execute(module: str, arguments: list[str]) -> int:
    """`python -m module arguments`: the exit status, with the messages Python would print."""
    dvc, sys.argv = sys.argv, [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.argv = dvc  # DVC signs its locks with it
    return 0
