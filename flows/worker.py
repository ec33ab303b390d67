"""A stage on a machine of a cluster, as flows/runners sends it there: python -m flows.worker STAGE JOB REMOTE

It takes the project from the remote into a folder of its own, so the code that this is started from may be older, then
checks out what the stage reads, runs it and pushes what it has made. Nothing is written anywhere else.
"""

import fcntl
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from flows import plan, remote, warm
from flows.runners import elsewhere
from stages.lib.frame import code, files, tracking
from stages.lib.frame.errors import command

if TYPE_CHECKING:
    from dvc.repo import Repo

HOME = Path(".dvc/tmp/worker")  # the jobs' projects, and what they share: DVC's cache, checkpoints of trainings
CONFIG = """\
[core]
    no_scm = true
    remote = {name}
[cache]
    dir = {cache}
['remote "{name}"']
    url = {url}
    verify = true
"""


def main(stage: str, job: str, url: str, *, unpacked: bool = False) -> None:
    """Run one stage.

    Args:
        unpacked: The project is in this folder already.
    """
    Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    if unpacked:
        sys.exit(work(stage, job))
    with suppress(PermissionError):  # it leads a group already
        os.setsid()
    with project(job, url) as folder:
        again = [sys.executable, "-m", "flows.worker", stage, job, url, "--unpacked"]
        done = subprocess.run(again, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)})
    sys.exit(done.returncode)


def end_with(parent: int) -> None:
    """What started this may be killed, and then nobody waits for the results."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


@contextmanager
def project(job: str, url: str) -> Iterator[Path]:
    """The job's project, unpacked. Projects that killed workers have left are removed."""
    home = HOME.absolute()
    projects, checkpoints = home / "projects", home / "checkpoints"
    folder = projects / f"{job}-{os.getpid()}"
    for shared in (projects, checkpoints):
        shared.mkdir(parents=True, exist_ok=True)
    with ExitStack() as until_done:
        with locked(projects):
            for left in projects.iterdir():
                with suppress(BlockingIOError), locked(left, fcntl.LOCK_NB):
                    files.remove(left)
            folder.mkdir()
            until_done.enter_context(locked(folder))
        unpack(f"{url}/{elsewhere.FOLDER}/{job}.{elsewhere.PROJECT}", folder)
        (folder / ".checkpoints").symlink_to(checkpoints)
        (folder / ".dvc").mkdir(exist_ok=True)
        config = CONFIG.format(name=remote.NAME, cache=home / "cache", url=url)
        (folder / ".dvc/config.local").write_text(config)
        yield folder
        files.remove(folder)


@contextmanager
def locked(folder: Path, how: int = 0) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
        yield
    finally:
        os.close(descriptor)


def unpack(address: str, folder: Path) -> None:
    import fsspec

    with fsspec.open(address) as file, tarfile.open(fileobj=file, mode="r:gz") as archive:  # pyright: ignore
        archive.extractall(folder, filter="data")


def work(stage: str, job: str) -> int:
    """In the project's folder: the exit status."""
    from dvc.repo import Repo

    code.write(Path(plan.CODE))
    os.environ |= {elsewhere.JOB: job, tracking.RECORD: "run.json"}
    with Repo() as repo, remote.reaching(repo):
        check_out_inputs(repo, stage)
    state = warm.repro(stage)
    with Repo() as repo, remote.reaching(repo) as store:
        if Path("run.json").is_file():
            store.fs.put_file("run.json", elsewhere.place(store, elsewhere.RUN))
        if state != warm.FAILED:
            remote.put(repo, repo.stage.load_one("dvc.yaml", stage))  # if that has not succeeded yet, it must now
    return int(state == warm.FAILED)


def check_out_inputs(repo: "Repo", stage: str) -> None:
    """What it reads of other stages' outputs, as the head's dvc.lock has them."""
    from dvc.exceptions import OutputNotFoundError

    for dep in repo.stage.load_one("dvc.yaml", stage).deps:
        if plan.is_parameters(dep) or plan.is_code(dep):
            continue
        with suppress(OutputNotFoundError):  # a source: the project brings it, or DVC says that it is missing
            for out in repo.find_outs_by_path(dep.fs_path, recursive=True, strict=False):
                remote.send(repo.cloud.pull, out)
                out.checkout(force=True)


if __name__ == "__main__":
    command(main)
