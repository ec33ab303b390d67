"""DVC's remote, by which machines hand each other what stages have made: a bucket of S3 or a folder.

python -m flows.remote s3://bucket/path     use it from now on (or /a/folder), and push what is up to date here
python -m flows.remote                      push all of that, also what was pushed before

A flow asks the remote before it runs a stage, and pushes every stage that it finishes. What comes from there is hashed
before it is used. Keys come from the environment or AWS's own files alone, another endpoint from AWS_ENDPOINT_URL.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from flows.distrust import distrust_cache
from stages.lib.frame import files
from stages.lib.frame.errors import UserError, command

if TYPE_CHECKING:
    from dvc.data_cloud import Remote
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

NAME = "store"
PATIENCE = 15  # seconds that a remote may take to answer; S3's client alone takes five where trainings have the machine
TIMEOUTS = {"connect_timeout": 5, "read_timeout": 60}  # of S3, where DVC sets none
DOWN = "ORCHARD_REMOTE_DOWN"  # environment variable: why the stages of this flow need not ask
PAUSE = 300  # seconds in which the stages of a flow do not ask one that did not answer
PUSHED = "pushed"  # folder of DVC's temporary files: an empty file for every result that a remote has


class Unreachable(UserError):
    """The remote does not answer, or not as it should."""


def configure(url: str) -> None:
    """Write DVC's default remote, with `verify`, without which DVC takes whatever a remote gives for whole."""
    from dvc.repo import Repo

    scheme, _, rest = url.rpartition("://")
    if scheme not in ("", "s3") or "@" in rest.split("/")[0]:
        raise UserError(
            f"{scheme}://{rest.rpartition('@')[2]} can't be the remote; it must be s3://BUCKET/PATH or a folder, "
            "without keys, which come from the environment or AWS's own files"
        )
    config: Any
    with Repo() as repo, repo.config.edit("repo") as config:
        place = {"url": url} | TIMEOUTS if scheme else {"url": str(Path(url).absolute())}
        config["remote"][NAME] = place | {"verify": True}
        config["core"]["remote"] = NAME


def configured() -> bool:
    """Whether DVC has a default remote here."""
    from dvc.config import Config

    return bool(Config(".dvc")["core"].get("remote"))


def require() -> None:
    if not configured():
        raise UserError("DVC has no default remote here: python -m flows.remote s3://BUCKET/PATH (or a folder)")


def url(repo: "Repo") -> str:
    return str(repo.config["remote"][repo.config["core"]["remote"]]["url"])


@contextmanager
def reaching(repo: "Repo") -> Iterator["Remote"]:
    """The remote, if it answers; whatever goes wrong with it is Unreachable, in one line."""
    from dvc.config import RemoteConfigError

    distrust_cache()
    if reason := os.environ.get(DOWN):
        raise Unreachable(reason)
    try:
        remote = repo.cloud.get_remote()
    except RemoteConfigError as error:
        raise UserError(f"DVC's remote: {error} (the extra `cluster` brings what S3 needs)") from error
    try:
        try:
            require_answer(remote)
        except Exception:
            silence(repo).touch()
            raise
        silence(repo).unlink(missing_ok=True)
        yield remote
    except UserError:
        raise
    except Exception as error:  # file systems have no one base class for what can be wrong with them
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise Unreachable(f"DVC's remote {remote.fs.unstrip_protocol(remote.path)}: {reason}") from error


def silence(repo: "Repo") -> Path:
    """An empty file, there since the remote did not answer."""
    return Path(str(repo.tmp_dir), "remote-silent")


def silent(repo: "Repo") -> bool:
    """Whether it did not a moment ago: every stage of a flow would wait for it twice."""
    place = silence(repo)
    return place.exists() and 0 <= time.time() - place.stat().st_mtime < PAUSE


def require_answer(remote: "Remote") -> None:
    """Raise unless there is one soon: S3's own client tries again and again for a minute."""
    failed: list[Exception] = []

    def ask() -> None:
        try:
            remote.fs.exists(remote.fs.join(remote.path, "runs"))
        except Exception as error:  # told by the thread that waits
            failed.append(error)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    if asking.is_alive():
        raise TimeoutError(f"no answer within {PATIENCE} s")
    if failed:
        raise failed[0]


@contextmanager
def forgiving() -> Iterator[None]:
    """Where the remote fails, a line, and work goes on without."""
    try:
        yield
    except UserError as error:
        print(error, file=sys.stderr)


def exchange(way: Callable[["Repo", "Stage"], None], repo: "Repo", stage: str) -> None:
    """`get` or `put`, if there is a remote and the flow has not found it down."""
    from dvc.repo import lock_repo

    if configured() and DOWN not in os.environ and not silent(repo):
        with forgiving():
            with lock_repo(repo):  # or dvc.lock may be half of what another stage is writing
                loaded = repo.stage.load_one("dvc.yaml", stage)
            way(repo, loaded)


def get(repo: "Repo", stage: "Stage") -> None:
    """Fill DVC's cache with what the remote knows of this stage with these inputs, so that it need not run."""
    from dvc.repo import lock_repo
    from dvc.stage.cache import _can_hash, _get_stage_hash

    with lock_repo(repo):
        if not stage.changed():
            return
    stage.save_deps(allow_missing=True)
    if not _can_hash(stage) or whole(known(repo, stage)):
        return
    with reaching(repo) as remote:
        there, here = places(remote, repo, _get_stage_hash(stage))
        for place in remote.fs.find(there):
            here.mkdir(parents=True, exist_ok=True)  # not before: DVC fails on an empty one
            remote.fs.get_file(place, str(here / remote.fs.name(place)))
        if record := known(repo, stage):
            send(repo.cloud.pull, record)


def put(repo: "Repo", stage: "Stage") -> None:
    """Push a stage that is up to date: its outputs, then the one record of its run that names them. `dvc push
    --run-cache` would copy every record that there is."""
    from dvc.stage.cache import _can_hash, _get_stage_hash

    if (mark := marked(repo, stage)).exists():
        return
    with reaching(repo) as remote:
        send(repo.cloud.push, stage)
        if _can_hash(stage):
            there, here = places(remote, repo, _get_stage_hash(stage))
            known_there = {remote.fs.name(place) for place in remote.fs.find(there)}
            if mark.name not in known_there and (here / mark.name).is_file():
                if known_there:
                    print(f"{stage.addressing}: the remote has another result of the same inputs, too")
                remote.fs.makedirs(there)
                remote.fs.put_file(str(here / mark.name), remote.fs.join(there, mark.name))
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def places(remote: "Remote", repo: "Repo", key: str) -> tuple[str, Path]:
    """Where records of the runs with one key are, there and here."""
    return remote.fs.join(remote.path, "runs", key[:2], key), Path(repo.stage_cache._get_cache_dir(key))


def known(repo: "Repo", stage: "Stage") -> "Stage | None":
    """The stage as DVC's run-cache has it for these inputs."""
    record = repo.stage_cache._load(stage)
    return repo.stage_cache._create_stage(record, wdir=stage.wdir) if record else None


def whole(stage: "Stage | None") -> bool:
    """Whether DVC's cache has all its outputs, undamaged."""
    return stage is not None and stage.outs_cached()


def send(way: Callable[..., Any], what: "Stage | Output") -> None:
    """`way`: push or pull of DVC's cloud."""
    for objects in what.get_used_objs().values():
        if failed := way(objects).failed:
            raise OSError(f"{len(failed)} objects of {what} were not copied")


def marked(repo: "Repo", stage: "Stage") -> Path:
    """The mark of what a stage has made; another remote has marks of its own."""
    from dvc.stage.cache import _get_cache_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    where = hashlib.sha256(url(repo).encode()).hexdigest()[:16]
    return Path(str(repo.tmp_dir), PUSHED, where, _get_cache_hash(to_single_stage_lockfile(stage)))


def catch_up() -> None:
    """Push what is done here and was not pushed, because the remote was down or there was none."""
    from dvc.repo import Repo

    if not configured() or DOWN in os.environ:
        return
    distrust_cache()
    with Repo(_wait_for_lock=True) as repo:
        for stage in repo.index.stages:
            done = stage.outs and all(out.hash_info for out in stage.outs)
            if done and not marked(repo, stage).exists() and whole(stage):
                put(repo, stage)


def why_down() -> str:
    """Why the remote can't be used now; empty if it can, or there is none."""
    from dvc.repo import Repo

    if configured():
        try:
            with Repo() as repo, reaching(repo):
                pass
        except UserError as error:
            return str(error)
    return ""


def main(url: str | None = None) -> None:
    from dvc.repo import Repo

    if url:
        configure(url)
    require()
    with Repo() as repo:
        files.remove(Path(str(repo.tmp_dir), PUSHED))
    catch_up()


if __name__ == "__main__":
    command(main)
