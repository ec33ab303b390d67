"""MANIFEST.json: size and sha256 of every file of an export, so that whoever receives it can tell what was changed."""

from pathlib import Path
from typing import Any

from stages.lib.frame import files
from stages.lib.frame.errors import UserError

MANIFEST, SIGNATURE = "MANIFEST.json", "model.sig"
UNLISTED = {MANIFEST, SIGNATURE}  # the signature is made last, over the manifest too


def write(folder: Path) -> None:
    """The last file of an export: whatever comes after it is an extra one."""
    about = {name: {"bytes": files.size(file), "sha256": files.digest(file)} for name, file in listed_files(folder)}
    files.write_json(folder / MANIFEST, {"files": about})


def listed_files(folder: Path) -> list[tuple[str, Path]]:
    found = [(file.relative_to(folder).as_posix(), file) for file in files.inside(folder)]
    return sorted((name, file) for name, file in found if name not in UNLISTED)


def problems(folder: Path) -> list[str]:
    """One line for every file that is not as it was exported; none: all are."""
    listed, present = read(folder), dict(listed_files(folder))
    complaints = [f"{name} is missing" for name in listed if name not in present]
    complaints += [f"{name} is extra: {MANIFEST} does not list it" for name in present if name not in listed]
    for name in listed.keys() & present.keys():
        complaints += difference(name, present[name], listed[name])
    return sorted(complaints)


def difference(name: str, file: Path, listed: dict[str, Any]) -> list[str]:
    if file.is_symlink():
        return [f"{name} is a link, not the file that was exported"]
    size, expected = files.size(file), listed["bytes"]
    if size < expected:
        return [f"{name} is truncated: {size:,} bytes of {expected:,}"]
    if size > expected or files.digest(file) != listed["sha256"]:
        return [f"{name} was tampered with: its sha256 is not that of {MANIFEST} ({size:,} bytes, {expected:,} listed)"]
    return []


def read(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    about = files.read_json(folder / MANIFEST)
    if not isinstance(about, dict) or not isinstance(about.get("files"), dict):
        raise UserError(f"{folder / MANIFEST} is damaged: it lists no files")
    wrong = [
        name
        for name, entry in about["files"].items()
        if not isinstance(entry, dict) or entry.keys() != {"bytes", "sha256"}
    ]
    if wrong:
        raise UserError(f"{folder / MANIFEST} is damaged: {wrong[0]} needs bytes and sha256")
    return about["files"]
