"""Make room: remove what neither params.yaml as it is, nor any registered version or what it was made from, needs.

python -m flows.gc

That is in DVC's cache results of other parameters, with the records of their runs; and what nobody took up for 30 days:
checkpoints, runs in MLflow that made nothing of all that, and this project's runs in Prefect. A version is kept by its
tag in git (flows/versions.py): `git tag -d NAME@SHA256` gives one up.
"""

import sys
import time
from pathlib import Path

from flows import lineage, plan, server

if __name__ == "__main__" and not {"-h", "--help"} & set(sys.argv):
    server.start()  # it needs as long as the imports below

from flows import history
from stages.lib.frame import files, tracking
from stages.lib.frame.errors import UserError, command

CHECKPOINTS, DAY = Path(".checkpoints"), 24 * 60 * 60
REMAIN = ".dvc/cache", str(CHECKPOINTS), "mlflow.db"


def main(*, days: float = 30) -> None:
    """
    Args:
        days: How old checkpoints and runs must be.
    """
    before = {name: files.size(Path(name)) for name in REMAIN if Path(name).exists()}
    since = time.time() - days * DAY
    with history.alone():
        collect()
        for folder in CHECKPOINTS.glob("*"):
            if max(file.stat().st_mtime for file in [folder, *files.inside(folder)]) < since:
                files.remove(folder)
        print(f"MLflow: {tracking.forget(since, needed()) if tracking.present() else 0} runs removed")
        print(f"Prefect: {history.forget(since)} runs of flows removed")
    for name, size in before.items():
        kept = files.size(Path(name))
        print(f"{name}: {(size - kept) / 1e6:,.1f} MB removed, {kept / 1e6:,.1f} kept")


def needed() -> set[str]:
    """MLflow's runs that made what is here, or a registered version, with all that these were made from."""
    here = [Path(path) for path in plan.outputs() if Path(path).exists()]
    wanted = [(path, files.digest(path)) for path in here] + tracking.all_registered()
    return {made.run for each in wanted for made in lineage.trace(*each).values()}


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
