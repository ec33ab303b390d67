"""Data that lie elsewhere are copied to where `data` reads them; only another content counts as news.

retrain:
  sources:                                # variant of `data` -> where its source comes from
    reviews: https://example.org/reviews.csv.gz
    chats: /mnt/export/chats              # or s3://bucket/folder (extra `cluster`), hf://datasets/org/name

Credentials come from the environment, as the protocol's ordinary client reads them (AWS_ACCESS_KEY_ID, HF_TOKEN, ...).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.lib.frame import files, params
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import PARAMS_FILE, Tree
from stages.lib.store import hub


def read(tree: Tree) -> dict[Path, str]:
    """Where `data` reads -> where it comes from."""
    section = tree.get("retrain", {})
    params.check_mapping(f"{PARAMS_FILE}: retrain", section)
    if unknown := sorted({*section} - {"sources"}):
        raise UserError(f"{PARAMS_FILE}: retrain.{unknown[0]} is not a parameter; there are: sources")
    params.check_mapping(place := f"{PARAMS_FILE}: retrain.sources", section.get("sources", {}))
    return dict(checked(tree, place, section.get("sources", {})))


def checked(tree: Tree, place: str, sources: dict[object, object]) -> Iterator[tuple[Path, str]]:
    known = tree.get("data", {})
    for name, origin in sources.items():
        if name not in known:
            raise UserError(f"{place}.{name}: 'data' has no such variant; there are: {params.names(known)}")
        if not isinstance(origin, str) or not origin:
            raise UserError(f"{place}.{name} is {origin!r}; it must be a path or a URL")
        if re.match(r"[a-z0-9+]+://[^/]*@", origin):
            raise UserError(f"{place}.{name} holds a password: take it from the environment")
        target = Path(known[name]["source"])
        if target.is_absolute() or ".." in target.parts:
            raise UserError(
                f"{place}.{name}: data.{name}.source is {target}, outside the project: nothing is put there"
            )
        yield target, origin


def refresh(target: Path, origin: str) -> bool:
    """Whether there is something new. What lay there stays until all of the new is here."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as beside:
        new = Path(beside, target.name)
        copy(origin, new)
        if target.exists() and files.digest(new) == files.digest(target):
            return False
        files.open_to_readers(new)
        files.remove(target)
        new.rename(target)
    return True


def copy(origin: str, target: Path) -> None:
    from fsspec.core import url_to_fs

    if origin.startswith("hf://"):
        hub.go_online()
    try:
        system, path = url_to_fs(origin)
        whole = not origin.startswith(("http://", "https://")) and system.isdir(path)
        system.get(path, str(target), recursive=True) if whole else system.get_file(path, str(target))
    except (OSError, ValueError, ImportError, TimeoutError) as error:
        raise UserError(f"{origin} can't be copied to {target.name}: {error or type(error).__name__}") from error
