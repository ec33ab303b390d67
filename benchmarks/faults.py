"""What goes wrong at random: kills, damage, a full disk, others beside, a remote that fails; in a small project.

python -m benchmarks.faults [--share 1] [--only "flow killed"] [--log FILE]    make torture: all, an hour and a half

Every trial breaks something in a copy of its own of the project of tests/flows/toy.py, at a random point while all its
stages must run or when all are done, and then does what a person would: start the flow once more, and do what it says
where it says something. Judged against a run that nothing happened to:

wrong    a stage's output, dvc.lock or a registered version has other bytes
lost     a stage ran again although dvc.lock had it and its output was whole, or a registered version is gone
stuck    no end within two minutes, no success after what it asked for, or a process left behind
asked    a person had to do something, told in one line; traceback: told in a traceback instead
"""

import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.request import urlopen

import psutil
from ruamel.yaml import YAML

from benchmarks import _result
from stages.lib.frame import files
from stages.lib.frame.errors import UserError, command
from tests.flows import toy
from tests.flows.toy import Project

RESULT = Path("benchmarks/results/faults.json")
PATIENCE = 120  # seconds for one command
FLOW, REPRO = [sys.executable, "-m", "flows.lifecycle"], [sys.executable, "-m", "dvc", "repro"]
EDIT = ("data.words.text", "other")  # after it every stage must run
SECONDS = 0.5  # that two of them take at least
TIMES = ("timings.json",)  # differ from run to run
ONE_AT_A_TIME = Lock()  # ports of `make ui` are everybody's


@dataclass
class Trial:
    """One project, in which something goes wrong."""

    project: Project
    chance: random.Random
    seconds: float  # that an undisturbed flow took
    known: set[str] = field(default_factory=set)  # stages that were done when it began
    may_run: set[str] = field(default_factory=set)  # stages whose outputs were damaged
    wrong: list[str] = field(default_factory=list)  # what the trial has found itself
    remedies: list[Callable[[], object]] = field(default_factory=list)  # what a person does when asked

    @property
    def folder(self) -> Path:
        return self.project.folder

    @property
    def log(self) -> Path:
        """What the flow says; a terminal is on no disk."""
        return self.folder.with_name("said.log")

    def start(self, words: list[str] = FLOW) -> subprocess.Popen[str]:
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.project.environment,
            text=True,
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_a_while(self) -> None:
        time.sleep(self.chance.uniform(0, self.seconds))


class Stuck(Exception):
    """It did not end."""


def wait(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        raise Stuck(f"{process.args} did not end") from error


# What goes wrong. Each leaves the project as the next flow finds it.


def flow_killed(trial: Trial) -> None:
    killed(trial, FLOW)


def repro_killed(trial: Trial) -> None:
    killed(trial, REPRO)


def killed(trial: Trial, words: list[str]) -> None:
    started = trial.start(words)
    trial.wait_a_while()
    started.kill()
    started.wait()


def below(process: psutil.Process, named: str) -> list[psutil.Process]:
    """Processes below it whose command line has `named`."""
    return [each for each in process.children(recursive=True) if named in " ".join(each.cmdline())]


def stages(flow: psutil.Process) -> list[psutil.Process]:
    """Those that run stages: children of the forkserver, which have its command line."""
    servers = [each for each in flow.children() if "forkserver" in " ".join(each.cmdline())]
    return [each for server in servers for each in server.children()]


def child_killed(trial: Trial, find: Callable[[psutil.Process], list[psutil.Process]]) -> None:
    """One of those that are found below the flow, as soon as there is one after a while."""
    flow = psutil.Process((started := trial.start()).pid)
    trial.wait_a_while()
    while started.poll() is None:
        with suppress(psutil.NoSuchProcess):
            if children := find(flow):
                trial.chance.choice(children).kill()
                break
        time.sleep(0.02)
    wait(started)


def stage_killed(trial: Trial) -> None:
    child_killed(trial, stages)


def forkserver_killed(trial: Trial) -> None:
    child_killed(trial, lambda flow: below(flow, "forkserver"))


def prefect_killed(trial: Trial) -> None:
    """The server that a flow has started for itself."""
    del trial.project.environment["PREFECT_API_URL"]
    child_killed(trial, lambda flow: below(flow, "flows.server"))


def worker_killed(trial: Trial) -> None:
    """Of `make schedule`, after a run was due. What it has begun may go on: a person waits for that."""
    home = own_prefect(trial)
    with ONE_AT_A_TIME:
        schedule = trial.start([sys.executable, "-m", "apps.schedule"])
        until(lambda: "Ctrl-C ends it" in trial.log.read_text() or schedule.poll() is not None)
        due = "from flows import server; server.start(); from prefect.deployments import run_deployment"
        trial.project.run(sys.executable, "-c", f"{due}; run_deployment('retrain/retrain', timeout=0)")
        trial.wait_a_while()
        workers = [each for each in psutil.Process(schedule.pid).children() if "worker" in each.cmdline()]
        for worker in workers:
            worker.kill()
        wait(schedule)
    assert workers and home.exists()
    trial.remedies.append(lambda: until(lambda: not left_behind(trial.folder)))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise Stuck("what was waited for did not come")
        time.sleep(0.2)


def own_prefect(trial: Trial) -> Path:
    """A database of its own, which the flow starts a server for."""
    home = trial.folder.with_name("prefect")
    shutil.copytree(trial.project.environment["PREFECT_HOME"], home, ignore=shutil.ignore_patterns("*.lock"))
    trial.project.environment["PREFECT_HOME"] = str(home)
    del trial.project.environment["PREFECT_API_URL"]
    return home


def no_memory(trial: Trial) -> None:
    """The system kills the stage that wants more than there is, every time, until a person has asked for less."""
    stage = trial.chance.choice(["data.words", "prune.left", "prune.right", "export.final"])
    tree = YAML().load(trial.folder / "params.yaml")
    section, variant = stage.split(".")
    right = tree[section][variant]["text"]
    trial.project.params(f"{stage}.text", "killed")
    trial.remedies.append(lambda: trial.project.params(f"{stage}.text", right))


def disk_full(trial: Trial) -> None:
    """A disk of its own that has room for some of what the flow writes."""
    place, aside = trial.folder, trial.folder.with_name("aside")
    place.rename(aside)
    place.mkdir()
    mounted("-t", "tmpfs", "tmpfs", str(place))
    shutil.copytree(aside, place, dirs_exist_ok=True)
    room = shutil.disk_usage(place).used + trial.chance.randrange(600_000)
    mounted("-o", f"remount,size={room}", str(place))
    trial.remedies.append(lambda: mounted("-o", "remount,size=1g", str(place)))
    wait(trial.start())


def read_only(trial: Trial) -> None:
    """A folder in which nobody may write, until a person allows it."""
    place = str(trial.folder / trial.chance.choice(["artifacts", ".dvc/cache", ".dvc/tmp", "artifacts/prune", "."]))
    mounted("--bind", place, place)
    mounted("-o", "remount,ro,bind", place)
    trial.remedies.append(lambda: subprocess.run(["umount", place], check=True))
    wait(trial.start())


def mounted(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def damage(trial: Trial, place: Path) -> None:
    """As bad disks and killed programs do it; its times stay, so that nobody is warned."""
    content, about = place.read_bytes(), place.stat()
    at = trial.chance.randrange(len(content)) if content else 0
    way = trial.chance.choice(["flipped", "cut", "zeroed", "emptied", "gone"])
    place.chmod(0o644)
    if way == "gone":
        return place.unlink()
    damaged = {
        "flipped": content[:at] + bytes([content[at] ^ 1 << trial.chance.randrange(8)]) + content[at + 1 :],
        "cut": content[:at],
        "zeroed": bytes(len(content)),
        "emptied": b"",
    }
    place.write_bytes(damaged[way])
    place.chmod(about.st_mode)
    os.utime(place, ns=(about.st_atime_ns, about.st_mtime_ns))
    return None


def object_damaged(trial: Trial) -> None:
    """In DVC's cache, with the stage's output removed, so that it must come from there."""
    stage = trial.chance.choice(["data/words", "prune/left", "prune/right", "export/final"])
    files.remove(trial.folder / "artifacts" / stage / "model")
    outputs = YAML(typ="safe").load(trial.folder / "dvc.lock")["stages"][stage.replace("/", "@")]["outs"]
    digest = next(out["md5"] for out in outputs if out["path"].endswith("/model"))
    damage(trial, object_of(trial.folder, digest))
    trial.may_run.add(stage.replace("/", "@"))


def object_of(folder: Path, digest: str) -> Path:
    return folder / ".dvc/cache/files/md5" / digest[:2] / digest[2:]


def artefact_damaged(trial: Trial) -> None:
    """In place and unseen, as `flows.verify` finds it."""
    made = [path for path in (trial.folder / "artifacts").rglob("*") if path.is_file() and path.name not in TIMES]
    place = trial.chance.choice([path for path in made if "code" not in path.parts])
    damage(trial, place)
    if wait(trial.start([sys.executable, "-m", "flows.verify"])) == 0:
        trial.wrong.append(f"{place}, which flows.verify takes for whole")
    stage = place.relative_to(trial.folder / "artifacts").parts
    trial.may_run.add("@".join(stage[:2]) if stage[0] != "eval" else f"{stage[2]}@{stage[1]}")


def lock_damaged(trial: Trial) -> None:
    damage(trial, trial.folder / "dvc.lock")


def record_damaged(trial: Trial) -> None:
    """Of a run, in DVC's run-cache, where all must come from: of the project nothing but the cache is left."""
    records = [path for path in (trial.folder / ".dvc/cache/runs").rglob("*") if path.is_file()]
    record = trial.chance.choice(records)
    command = YAML(typ="safe").load(record)["cmd"].split()
    section, first, second = command[2].removeprefix("stages."), *command[3:5]
    trial.may_run.add(f"{first}@{second}" if section == "eval" else f"{section}@{first}")
    damage(trial, record)
    (trial.folder / "dvc.lock").unlink()
    files.remove(trial.folder / "artifacts")


def mlflow_damaged(trial: Trial) -> None:
    damage(trial, trial.folder / "mlflow.db")


def memory_damaged(trial: Trial) -> None:
    """What DVC remembers of sizes and times."""
    show = "from dvc.repo import Repo; print(Repo().site_cache_dir)"
    place = Path(trial.project.run(sys.executable, "-c", show).split()[-1])
    damage(trial, trial.chance.choice([path for path in place.rglob("*.db") if path.is_file()]))


def prefect_damaged(trial: Trial) -> None:
    damage(trial, own_prefect(trial) / "prefect.db")


def two_flows(trial: Trial) -> None:
    beside(trial, FLOW)


def flow_beside_repro(trial: Trial) -> None:
    beside(trial, REPRO)


def beside(trial: Trial, words: list[str]) -> None:
    """One may refuse, in a line: both must end."""
    one = trial.start()
    time.sleep(trial.chance.uniform(0, trial.seconds / 2))
    other = trial.start(words)
    wait(one)
    wait(other)


def two_clones(trial: Trial) -> None:
    """On one remote, at the same time."""
    store = trial.folder.with_name("store")
    trial.project.run(sys.executable, "-m", "flows.remote", str(store))
    other = trial.project.copy(trial.folder.with_name("other"))
    theirs = Trial(other, trial.chance, trial.seconds)
    one, two = trial.start(), theirs.start()
    trial.wait_a_while()
    killed = trial.chance.choice([one, two])
    killed.kill()
    killed.wait()
    wait(two if killed is one else one)
    if wait(theirs.start()):
        raise Stuck("the other clone did not converge")
    for path in filter(Path.is_file, (store / "files/md5").rglob("*")):
        if path.suffix != ".dir" and hashlib.md5(path.read_bytes()).hexdigest() != path.parent.name + path.name:
            trial.wrong.append(f"{path.relative_to(store)} of the remote")


def clock_back(trial: Trial) -> None:
    """Everything here was written tomorrow."""
    for path in trial.folder.rglob("*"):
        if not path.is_symlink():
            os.utime(path, times=(tomorrow := time.time() + 86_400, tomorrow))


def remote_fails(trial: Trial) -> None:
    """An S3 that stalls, refuses, or answers nonsense from some request on."""
    how, healthy = trial.chance.choice(["stalls", "refuses", "hangs up", "nonsense"]), trial.chance.randrange(3)
    server = failing_server(how, healthy)
    trial.remedies.append(server.shutdown)
    keys = toy.S3_KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}"}
    trial.project.environment |= keys
    for name, value in {"url": "s3://bucket/path", "connect_timeout": "2", "read_timeout": "5"}.items():
        trial.project.run("dvc", "config", f"remote.store.{name}", value)
    trial.project.run("dvc", "config", "core.remote", "store")
    trial.wait_a_while()
    wait(trial.start())


def failing_server(how: str, healthy: int) -> ThreadingHTTPServer:
    """Answers `healthy` requests as an empty bucket would, then fails."""
    seen = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            if len(seen) <= healthy:
                body = b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body if self.command == "GET" else b"")
            elif how == "stalls":
                time.sleep(PATIENCE)
            elif how == "refuses":
                self.send_error(503)
            elif how == "nonsense":
                self.wfile.write(b"\x00\xff nonsense\r\n")

        do_PUT = do_HEAD = do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    return server


RUNNING: dict[str, tuple[int, Callable[[Trial], None]]] = {  # how many trials, which begin with all to do
    "flow killed": (32, flow_killed),
    "dvc repro killed": (21, repro_killed),
    "stage killed": (16, stage_killed),
    "forkserver killed": (10, forkserver_killed),
    "Prefect's server killed": (8, prefect_killed),
    "worker killed": (6, worker_killed),
    "no memory": (6, no_memory),
    "disk full": (12, disk_full),
    "read-only folder": (8, read_only),
    "Prefect damaged": (6, prefect_damaged),
    "two flows": (6, two_flows),
    "flow beside dvc repro": (8, flow_beside_repro),
    "two clones": (6, two_clones),
    "clock back": (3, clock_back),
    "remote fails": (8, remote_fails),
}
DONE: dict[str, tuple[int, Callable[[Trial], None]]] = {  # which begin with all done
    "object damaged": (12, object_damaged),
    "artefact damaged": (12, artefact_damaged),
    "dvc.lock damaged": (8, lock_damaged),
    "record damaged": (6, record_damaged),
    "MLflow damaged": (6, mlflow_damaged),
    "DVC's memory damaged": (6, memory_damaged),
}
KINDS, ROOTS = RUNNING | DONE, {"disk full", "read-only folder"}


@dataclass
class Right:
    """What a run that nothing happened to has made."""

    entries: dict[str, Any]
    digests: dict[str, str]
    seconds: float
    versions: set[tuple[str, str]]


def entries(folder: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(folder / "dvc.lock")["stages"]


def digests(folder: Path) -> dict[str, str]:
    """Of all that stages have written, by dvc.lock."""
    paths = [Path(out["path"]) for entry in entries(folder).values() for out in entry["outs"]]
    return {str(path): files.digest(folder / path) for path in paths if (folder / path).exists()}


def versions(project: Project) -> set[tuple[str, str]]:
    """Name and sha256 of all registered versions."""
    show = (
        "import json; from stages.lib.frame import tracking\n"
        "with tracking.client() as mlflow: found = mlflow.search_model_versions()\n"
        "print(json.dumps([[each.name, each.tags['sha256']] for each in found]))"
    )
    return {(name, digest) for name, digest in json.loads(project.run(sys.executable, "-c", show).splitlines()[-1])}


def finished(folder: Path, right: Right) -> set[str]:
    """Stages that dvc.lock has as they should be, with what they made."""
    try:
        known = entries(folder)
    except Exception:  # damaged in whatever way: a person would look into git
        return set()
    there = {name for name, entry in known.items() if right.entries.get(name) == entry}
    return {name for name in there if all((folder / out["path"]).exists() for out in known[name]["outs"])}


def judge(trial: Trial, right: Right) -> dict[str, Any]:
    verdict: dict[str, Any] = {"wrong": [], "lost": [], "stuck": "", "asked": 0, "tracebacks": 0}
    asked = 0
    while True:
        before = trial.known | finished(trial.folder, right)
        trial.project.ran()
        trial.log.unlink(missing_ok=True)
        code = wait(trial.start())
        said = trial.log.read_text()
        verdict["tracebacks"] += "Traceback (most recent call last)" in said
        verdict["lost"] += sorted((before & set(trial.project.ran())) - trial.may_run)
        if code == 0:
            break
        asked += 1
        verdict |= {"asked": asked, "said": said[-800:]}
        if not trial.remedies or asked > 3:
            raise Stuck(f"the flow ends with {code}: {said[-800:]}")
        trial.remedies.pop()()
    made = digests(trial.folder)
    verdict["wrong"] = trial.wrong + sorted(name for name, each in right.digests.items() if made.get(name) != each)
    if entries(trial.folder) != right.entries:
        verdict["wrong"].append("dvc.lock")
    known = versions(trial.project)
    if list(trial.folder.glob("mlflow.db.damaged-*")):  # seen now, and told: what git knows comes back
        trial.project.flow()
        known = versions(trial.project)
    verdict["wrong"] += [name for name, digest in known if digest not in {digest for _, digest in right.versions}]
    verdict["lost"] += sorted(name for name, digest in right.versions - known)
    return verdict


def left_behind(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
    return found


def run(base: Project, right: Right, place: Path, kind: str, number: int) -> dict[str, Any]:
    chance, start = random.Random(f"{kind} {number}"), time.monotonic()
    trial = Trial(base.copy(place / "project"), chance, right.seconds, set(right.entries) if kind in DONE else set())
    verdict: dict[str, Any] = {}
    try:
        KINDS[kind][1](trial)
        verdict = judge(trial, right)
        end = time.monotonic() + 10  # what ends with the flow ends within seconds
        while (left := left_behind(place)) and time.monotonic() < end:
            time.sleep(0.2)
        if left:
            verdict["stuck"] = f"left behind: {left}"
    except Stuck as error:
        verdict |= {"stuck": str(error)}
    finally:
        for process in left_behind(place):
            with suppress(ProcessLookupError):
                os.kill(int(process.split()[0]), signal.SIGKILL)
        while trial.remedies:
            with suppress(subprocess.CalledProcessError):
                trial.remedies.pop()()
        while subprocess.run(["umount", str(trial.folder)], capture_output=True).returncode == 0:
            pass
        files.remove(place)
    return verdict | {"kind": kind, "number": number, "seconds": round(time.monotonic() - start, 1)}


@contextmanager
def world() -> Iterator[tuple[Path, Project, Project, Right]]:
    """The project edited, in which all was done and registered before; another one after it has run; what that made."""
    from flows import server

    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        os.environ["PREFECT_HOME"] = str(place / "prefect")
        os.environ.pop(server.ADDRESS, None)
        started = server.own()
        urlopen(f"{os.environ[server.ADDRESS]}/health", timeout=60).close()  # it listens before it answers
        variables = {name: os.environ[name] for name in ("PREFECT_HOME", server.ADDRESS)}
        base = toy.build(place / "base", variables)
        for stage in ("prune.left", "prune.right"):
            base.params(f"{stage}.seconds", SECONDS)
        base.commit()
        base.flow()
        base.params(*EDIT)
        base.commit()
        base.ran()
        done = base.copy(place / "done")
        start = time.monotonic()
        done.flow()
        seconds = time.monotonic() - start
        done.commit()
        done.ran()
        yield place, base, done, Right(entries(done.folder), digests(done.folder), seconds, versions(done))
        assert started.stdin
        started.stdin.close()
        started.wait(20)


@contextmanager
def ending(pool: ThreadPoolExecutor) -> Iterator[None]:
    """What goes wrong ends it after the trials that run, not after all."""
    try:
        yield
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def main(*, share: float = 1, only: str | None = None, at_once: int = 2, log: Path | None = None) -> None:
    """
    Args:
        share: Of the trials of each kind, at least one.
        only: One kind.
        at_once: Trials beside each other.
        log: A file with a line of JSON for every trial; what is in it already is not tried again.
    """
    if only and only not in KINDS:
        raise UserError(f"--only {only}: there are {', '.join(KINDS)}")
    wanted = [(kind, n) for kind, (count, _) in KINDS.items() for n in range(max(1, round(count * share)))]
    wanted = [(kind, n) for kind, n in wanted if only in (None, kind)]
    if {kind for kind, _ in wanted} & ROOTS and os.geteuid():
        raise UserError(f"{', '.join(sorted(ROOTS))}: only root may mount such disks; --only KIND tries another kind")
    if find_spec("dvc_s3") is None:
        raise UserError("benchmarks.faults needs the extra `cluster`: pip install --no-deps -r infra/cluster.lock")
    verdicts = [json.loads(line) for line in log.read_text().splitlines()] if log and log.exists() else []
    known = {(each["kind"], each["number"]) for each in verdicts}
    wanted = [each for each in wanted if each not in known]
    with world() as (place, base, done, right), ThreadPoolExecutor(at_once) as pool, ending(pool):
        running = [
            pool.submit(run, done if kind in DONE else base, right, place / f"{n}", kind, number)
            for n, (kind, number) in enumerate(wanted)
        ]
        for future in as_completed(running):
            verdicts.append(verdict := future.result())
            bad = {key: verdict.get(key) for key in ("wrong", "lost", "stuck", "tracebacks") if verdict.get(key)}
            print(f"{verdict['kind']:24} {verdict['number']:3} {verdict['seconds']:6.1f} s  {bad or ''}", flush=True)
            if log:
                with log.open("a") as file:
                    file.write(json.dumps(verdict) + "\n")
    show(verdicts)
    if share == 1 and only is None:
        _result.save(RESULT, summary(verdicts), "dvc", "prefect", "mlflow")


def summary(verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    total = {"trials": len(verdicts), "seconds_median": statistics.median(each["seconds"] for each in verdicts)}
    total |= {key: sum(bool(each.get(key)) for each in verdicts) for key in ("wrong", "lost", "stuck")}
    total |= {key: sum(each.get(key, 0) for each in verdicts) for key in ("asked", "tracebacks")}
    for kind in KINDS:
        total[f"{kind.replace(' ', '_')}_trials"] = sum(each["kind"] == kind for each in verdicts)
    return total


def show(verdicts: list[dict[str, Any]]) -> None:
    print(f"{'kind':24} trials  wrong  lost  stuck  asked  traceback")
    for kind in [*KINDS, "all"]:
        some = [each for each in verdicts if kind in (each["kind"], "all")]
        bad = [sum(bool(each.get(key)) for each in some) for key in ("wrong", "lost", "stuck", "asked", "tracebacks")]
        if some:
            print(f"{kind:24} {len(some):6}  {bad[0]:5}  {bad[1]:4}  {bad[2]:5}  {bad[3]:5}  {bad[4]:9}")


if __name__ == "__main__":
    command(main)
