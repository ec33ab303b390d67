"""Make room: remove what neither params.yaml as it is, nor any registered version or what it was made from, needs.

python -m flows.gc

That is in DVC's cache results of other parameters, with the records of their runs, and checkpoints that nobody took up
for 30 days. A version is kept by its tag in git (flows/versions.py): `git tag -d NAME@SHA256` gives one up.
"""

import time
from pathlib import Path

from stages.lib.frame import files
from stages.lib.frame.errors import UserError, command

CHECKPOINTS, DAY = Path(".checkpoints"), 24 * 60 * 60
REMAIN = ".dvc/cache", str(CHECKPOINTS)


def main(*, days: float = 30) -> None:
    """
    Args:
        days: How old checkpoints must be.
    """
    before = {name: files.size(Path(name)) for name in REMAIN if Path(name).is_dir()}
    collect()
    for folder in CHECKPOINTS.glob("*"):
        if time.time() - max(file.stat().st_mtime for file in [folder, *files.inside(folder)]) > days * DAY:
            files.remove(folder)
    for name, size in before.items():
        kept = files.size(Path(name))
        print(f"{name}: {(size - kept) / 1e6:,.1f} MB removed, {kept / 1e6:,.1f} kept")


def collect() -> None:
    """Objects of DVC's cache that no dvc.lock of the workspace or a tag names, then records of runs that had them."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(_wait_for_lock=True) as repo:
            repo.gc(workspace=True, all_tags=True)
            there = set(repo.cache.local.all())
            for record in Path(repo.stage_cache.cache_dir).glob("*/*/*"):
                if not outputs(record) <= there:
                    record.unlink()
                    if not any(record.parent.iterdir()):
                        record.parent.rmdir()  # DVC fails on an empty one
    except DvcException as error:
        raise UserError(f"DVC: {error}") from error


def outputs(record: Path) -> set[str]:
    from dvc.utils.serialize import load_yaml

    return {out["md5"] for out in load_yaml(str(record))["outs"]}


if __name__ == "__main__":
    command(main)
