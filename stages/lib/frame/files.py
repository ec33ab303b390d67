"""Files and folders that stages hand to each other: content hashes and atomic writes."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.lib.frame.errors import UserError

SEAL = "sha256"  # the file that says so in a folder of `sealing`


def digest(path: Path) -> str:
    """sha256 of a file, or of a folder's file names and contents; the identity of an artefact in MLflow."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise UserError(f"{path} is missing")
    return _content(path, sorted(file for file in inside(path) if file.is_file()))


def inside(folder: Path) -> Iterator[Path]:
    """Whatever lies in a folder and is none itself, behind links too; no real folder twice, for links may run round."""
    seen = {folder.resolve()}
    for place, folders, names in os.walk(folder, followlinks=True):
        new = {(Path(place) / name).resolve(): name for name in sorted(folders, reverse=True)}
        folders[:] = sorted(name for real, name in new.items() if real not in seen)
        seen |= new.keys()
        yield from (Path(place) / name for name in names)


def _content(folder: Path, parts: list[Path]) -> str:
    total = hashlib.sha256()
    for file in parts:
        total.update(f"{file.relative_to(folder).as_posix()}\0{digest(file)}\n".encode())
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
        open_to_readers(temporary)
        remove(target)
        temporary.replace(target)
    finally:
        remove(temporary)


def open_to_readers(path: Path) -> None:
    """Files as readable as any that a program makes here; safetensors' are the owner's alone."""
    os.umask(mask := os.umask(0o022))
    for file in [path, *inside(path)] if path.is_dir() else [path]:
        if not file.is_symlink() and file.is_file():
            file.chmod(file.stat().st_mode | 0o444 & ~mask)


@contextmanager
def sealing(target: Path) -> Iterator[Path]:
    """`writing` of a folder without folders in it that a later run takes up, with the hash of what it holds."""
    with writing(target) as folder:
        yield folder
        (folder / SEAL).write_text(_content(folder, sorted(folder.iterdir())))


def sealed(folder: Path) -> bool:
    """Whether that folder is there, whole; one that is damaged is removed, for what was done can be done again."""
    if not folder.is_dir():
        return False
    seal = folder / SEAL
    if seal.is_file() and seal.read_bytes() == _content(folder, sorted({*folder.iterdir()} - {seal})).encode():
        return True
    print(f"{folder} is damaged, and what it held is done again")
    remove(folder)
    return False


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
