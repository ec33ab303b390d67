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
from multiprocessing import forkserver, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from threading import Event, Lock, Thread
from types import ModuleType
from typing import Any

from flows import remote
from flows.distrust import distrust_cache

PRELOAD = [
    *("dvc.repo.reproduce", "dvc.repo.plots", "dvc.stage.run", "dvc.cachemgr", "dvc.lock", "scmrepo.git", "cyclopts"),
    *("codecarbon", "mlflow", "mlflow.store.tracking.sqlalchemy_store"),
    *("torch", "transformers.models.llama.modeling_llama", "dvc_s3", "s3fs"),
]
STARTING, STOPPED = Lock(), Event()
RUNNING: set[BaseProcess] = set()
FAILED, RESTORED, OFFERED = 1, 4, 5
# Exit code -> what happened; Restored: from DVC's run-cache; Offered: to another machine (flows/runners).
STATES = {0: "Completed", 3: "Cached", RESTORED: "Restored", OFFERED: "Offered"}


def start(preload: list[str] | None = None) -> None:
    """Begin importing in the background. Importing only: a thread or a CUDA context would not survive the fork."""
    sys.modules["__main__"] = ModuleType("__main__")  # or every child would import the flow, and with it Prefect, again
    multiprocessing.set_forkserver_preload(["stages", *(PRELOAD if preload is None else preload), __name__])
    forkserver.ensure_running()


def reproduce(
    stage: str,
    environment: dict[str, str],
    tell: Callable[[bytes], None],
    work: Callable[[str], int] | None = None,
) -> str | None:
    """Bring one stage up to date, handing its output to `tell` as it comes; the state it ends in, None if it fails.
    `work`: other than `repro`."""
    context = multiprocessing.get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(work or repro, stage, environment, writer), name=stage)
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
        stop()
        raise


def stop() -> None:
    """End all stages that run, and begin no other."""
    with STARTING:
        STOPPED.set()
        for process in list(RUNNING):
            assert process.pid
            with suppress(ProcessLookupError):  # it has not begun, or is done
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()


def child(work: Callable[[str], int], stage: str, environment: dict[str, str], writer: Connection) -> None:
    os.setsid()
    Thread(target=end_with_the_flow, daemon=True).start()
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(work(stage))


def end_with_the_flow() -> None:
    parent = parent_process()
    assert parent
    parent.join()
    os.killpg(0, signal.SIGKILL)


def repro(stage: str, run_command: Callable[..., None] | None = None) -> int:
    """As `dvc repro` does, with what the remote knows; `run_command(DVC's own, executable, command, **kwargs of Popen)`
    is asked where a command must run, `here` by default."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.stage import run
    from dvc.stage.exceptions import StageCmdFailedError

    commands: list[str] = []
    shell = run._run

    def _run(executable: str | None, command: str, **kwargs: Any) -> None:
        commands.append(command)
        (run_command or here)(shell, executable, command, **kwargs)

    run._run = _run
    distrust_cache()
    try:
        with Repo(_wait_for_lock=True) as repo:
            repo.scm_context.quiet = True  # no advice about git after every stage
            remote.exchange(remote.get, repo, stage)
            changed = repo.reproduce(targets=[stage], single_item=True)  # type: ignore[call-arg]
            remote.exchange(remote.put, repo, stage)
    except DvcException as error:
        if not isinstance(cause := error.__cause__ or error, StageCmdFailedError):  # of that the stage has said more
            print(cause, file=sys.stderr)
        return FAILED
    return 0 if commands else RESTORED if changed else 3


def here(shell: Callable[..., None], executable: str | None, command: str, /, **kwargs: Any) -> None:
    """Run a stage's module in this process, and what is none as DVC does."""
    from dvc.stage.exceptions import StageCmdFailedError

    words = shlex.split(command)
    if words[:2] != ["python", "-m"] or not words[2].startswith("stages."):
        return shell(executable, command, **kwargs)
    os.environ.update(kwargs["env"])
    os.chdir(kwargs["cwd"])
    sys.path.insert(0, kwargs["cwd"])
    if status := execute(words[2], words[3:]):
        raise StageCmdFailedError(command, status)
    return None


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
