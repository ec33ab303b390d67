"""What a killed run may leave behind, put right while holding DVC's own lock; and one order for dvc.lock."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.lib.frame import files, sqlite

if TYPE_CHECKING:
    from dvc.repo import Repo


def repair(repo: "Repo") -> None:
    """Caller holds repo.lock. Finished stages that a restored dvc.lock forgets come back from DVC's run-cache."""
    assert repo.lock.is_locked
    release_dead(Path(str(repo.tmp_dir)) / "rwlock")
    restore(Path(repo.root_dir) / "dvc.lock")


@cache
def mend_memory() -> None:
    """What DVC remembers of sizes and times lies in databases whose place it knows only when it opens them, and then
    fails if they are damaged; all of it can be hashed anew."""
    from dvc_data.hashfile.cache import Cache

    opened = Cache.__init__

    def open_whole(self: Cache, directory: str | None = None, *args: Any, **kwargs: Any) -> None:
        assert directory
        database = Path(directory, "cache.db")
        if database.exists() and not sqlite.whole(database, "Settings"):
            files.remove(Path(directory))
            print(f"{database} is damaged: removed, and DVC hashes everything anew")
        opened(self, directory, *args, **kwargs)

    Cache.__init__ = open_whole  # pyright: ignore[reportAttributeAccessIssue]  (which says what *args stand for)


def release_dead(rwlock: Path) -> None:
    """Drop what processes that no longer exist had reserved; a truncated file would stop every dvc command."""
    if not rwlock.exists():
        return
    try:
        held = json.loads(rwlock.read_text())
        written = rwlock.stat().st_mtime
        write = {path: info for path, info in held.get("write", {}).items() if alive(info["pid"], written)}
        read = {path: [i for i in infos if alive(i["pid"], written)] for path, infos in held.get("read", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        print(f"{rwlock} was damaged by a killed run: removed")
        files.remove(rwlock)
        return
    kept = {"write": write, "read": {path: infos for path, infos in read.items() if infos}}
    if kept != held:
        rwlock.write_text(json.dumps(kept))


def alive(pid: int, since: float) -> bool:
    """Whether the process that wrote the entry still runs; a later process may have been given its number."""
    import psutil

    try:
        return psutil.Process(pid).create_time() <= since
    except psutil.NoSuchProcess:
        return False


def restore(lockfile: Path) -> None:
    """Replace a dvc.lock that a killed run truncated by the committed one, or remove it if there is none."""
    if not lockfile.exists() or valid(lockfile):
        return
    show = ["git", "-C", str(lockfile.parent), "show", f"HEAD:./{lockfile.name}"]
    committed = subprocess.run(show, capture_output=True)
    if committed.returncode == 0:
        replace(lockfile, committed.stdout)
        print(f"{lockfile.name} was damaged by a killed run: restored from the last commit")
    else:
        lockfile.unlink()
        print(f"{lockfile.name} was damaged by a killed run, and none is committed: removed")


def valid(lockfile: Path) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import EncodingError, YAMLFileCorruptedError, load_yaml
    from voluptuous import Invalid

    try:
        content: dict[str, Any] = load_yaml(str(lockfile))
        COMPILED_LOCKFILE_SCHEMA(content)
    except (YAMLFileCorruptedError, EncodingError, Invalid):
        return False
    stages = content.get("stages", {}).values()
    recorded = [file for stage in stages for file in [*stage.get("deps", []), *stage.get("outs", [])]]
    return all(file.get("hash", "md5") == "md5" for file in recorded)  # of another kind of hash DVC knows nothing


def sort(lockfile: Path, names: list[str]) -> None:
    """Entries of dvc.lock in the order of a serial `dvc repro`, whatever order parallel stages ended in."""
    from dvc.utils.serialize import dumps_yaml, load_yaml

    if not lockfile.exists():
        return
    content: dict[str, Any] = load_yaml(str(lockfile))
    stages = content["stages"]
    ordered = sorted(stages, key=lambda name: (names.index(name) if name in names else len(names), name))
    if ordered != list(stages):
        content["stages"] = {name: stages[name] for name in ordered}
        replace(lockfile, dumps_yaml(content).encode())


def replace(lockfile: Path, content: bytes) -> None:
    with files.writing(lockfile) as partial:
        partial.write_bytes(content)
