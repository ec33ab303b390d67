"""Files and folders that stages hand to each other: content hashes and atomic writes."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.lib.frame.errors import UserError


def digest(path: Path) -> str:
    """sha256 of a file, or of a folder's file names and contents; the identity of an artefact in MLflow."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise UserError(f"{path} is missing")
    total = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file() and "__pycache__" not in f.parts):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it into place only when the block ends well.

    A folder is created for a target without suffix; a killed or failed stage leaves no half-written artefact.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    remove(temporary)
    if not target.suffix:
        temporary.mkdir()
    try:
        yield temporary
        remove(target)
        temporary.replace(target)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run the stage that made it again") from None


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start work whose result would not fit on the disk."""
    place = next(p for p in [folder, *folder.absolute().parents] if p.exists())
    if (free := shutil.disk_usage(place).free) < needed:
        raise UserError(f"{place} has {free / 1e6:,.0f} MB free, this stage needs about {needed / 1e6:,.0f} MB")
