"""What all clusters have in common: a stage is offered here, run there by flows/worker.py, and its results collected.

Offered: unless it is up to date here or in DVC's remote, the project as it is (tracked files, new code, dvc.lock) goes
into the remote. Collected: its outputs come from the remote as any result does, its run for MLflow as a file beside.
"""

import io
import logging
import os
import secrets
import subprocess
import tarfile
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows import remote, warm
from flows.plan import Step
from flows.runners import Runner
from stages.lib.frame import tracking
from stages.lib.frame.errors import UserError

Tell = Callable[[bytes], None]
JOB = "ORCHARD_JOB"  # environment variable: the job's name, by which head and worker find its files in the remote
FOLDER, PROJECT, RUN = "jobs", "tar.gz", "json"  # where those are in the remote, and what their names end with
SHIPPED = ("params.yaml", "dvc.yaml", "dvc.lock")  # whether git tracks them or not
NEW_CODE = ("stages", "flows")  # where files count that git does not track yet


class Elsewhere(Runner):
    """A runner on machines that share nothing with this one but DVC's remote."""

    def require(self) -> None:
        from dvc.repo import Repo

        remote.require()
        with Repo() as repo, remote.reaching(repo):
            pass

    def reproduce(self, step: Step, environment: dict[str, str], tell: Callable[[bytes], None]) -> str | None:
        job = f"{step.name}-{secrets.token_hex(6)}"
        environment = environment | {JOB: job}
        state = warm.reproduce(step.name, environment, tell, offer)
        if state != "Offered":
            return state
        ended_well = self.run(step.name, job, tell)
        return warm.reproduce(step.name, environment, tell, collect if ended_well else give_up)

    @abstractmethod
    def run(self, stage: str, job: str, tell: Tell) -> bool:
        """Have a machine run `command`, telling its output as it comes; whether it ended with 0. Ends it, too, when
        warm.STOPPED is set."""


def command(stage: str, job: str, python: str = "python") -> list[str]:
    """What the other machine runs, in a folder that holds Orchard's code, of whatever version."""
    from dvc.repo import Repo

    with Repo() as repo:
        return [python, "-m", "flows.worker", stage, job, remote.url(repo)]


def offer(stage: str) -> int:
    """Its state if it need not run, else its job in the remote."""
    from dvc.repo import Repo, lock_repo

    wanted: list[str] = []
    quieten()

    def note(_shell: Any, _executable: str | None, line: str, /, **_: Any) -> None:
        wanted.append(line)
        refuse(line)

    state = warm.repro(stage, note)
    if not wanted:
        return state
    with Repo(_wait_for_lock=True) as repo:
        with lock_repo(repo):  # so that dvc.lock is whole
            packed = pack()
        with remote.reaching(repo) as store:
            store.fs.makedirs(store.fs.join(store.path, FOLDER))
            store.fs.pipe_file(place(store, PROJECT), packed)
    return warm.OFFERED


def collect(stage: str) -> int:
    """What the worker has made."""
    quieten()
    state = warm.repro(stage, lambda _shell, _executable, line, /, **_: refuse(line))
    give_up(stage)
    return 0 if state == warm.RESTORED else warm.FAILED


def give_up(_stage: str) -> int:
    """Only its run for MLflow, if the worker lived to write one; and the job's files are removed."""
    from dvc.repo import Repo

    with TemporaryDirectory() as folder:
        record = Path(folder, RUN)
        with Repo() as repo, remote.reaching(repo) as store:
            for there in filter(store.fs.exists, (place(store, RUN), place(store, PROJECT))):
                if there.endswith(RUN):
                    store.fs.get_file(there, str(record))
                store.fs.rm_file(there)
        if record.exists():
            tracking.take(record)
    return warm.FAILED


def quieten() -> None:
    """DVC would say that it runs the stage, which the worker says, and then that it has it from its cache."""
    logging.getLogger("dvc").setLevel(logging.WARNING)


def refuse(line: str) -> None:
    from dvc.stage.exceptions import StageCmdFailedError

    raise StageCmdFailedError(line)


def place(store: Any, suffix: str) -> str:
    return store.fs.join(store.path, FOLDER, f"{os.environ[JOB]}.{suffix}")


def pack() -> bytes:
    """The project without its artefacts."""
    named = git("--cached") | git("--others", "--exclude-standard", *NEW_CODE) | set(SHIPPED)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in sorted(name for name in named if Path(name).is_file()):
            archive.add(name)
    return packed.getvalue()


def git(*which: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", "-z", *which], capture_output=True, text=True)
    if listed.returncode:
        raise UserError(f"only what git tracks can run on other machines: {listed.stderr.strip()}")
    return set(filter(None, listed.stdout.split("\0")))
