"""Is everything still what it was? python -m flows.verify

DVC looks at sizes and times, and sees nothing of what a bad disk has changed in place. This hashes all artefacts, and
in DVC's cache all that they and the registered versions need (flows/versions.py), and the last comparisons of
challengers with their champions. What is damaged there is removed and, where the artefact itself is whole, put back;
the rest is fetched or made anew when it is needed. Ends with 1 if anything is not whole.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flows import challenge
from flows.distrust import distrust_cache
from stages.lib.frame import files
from stages.lib.frame.errors import UserError, command

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo


def main() -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    distrust_cache()
    try:
        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            complaints, count = look(repo)
            complaints += [f"{folder} is damaged or half made: compared anew" for folder in challenge.damaged()]
    except DvcException as error:
        raise UserError(f"DVC: {error}") from error
    print("\n".join([*complaints, f"{count} outputs of stages were hashed; {len(complaints)} complaints"]))
    sys.exit(bool(complaints))


def look(repo: "Repo") -> tuple[list[str], int]:
    """What can't be put right here, and how many different outputs there are."""
    from dvc_data.hashfile.state import StateNoop

    known: dict[str, str] = {}  # hash -> what is wrong, if anything
    for revision in repo.brancher(all_tags=True):
        for odb in (repo.cache.local, repo.cache.legacy):
            odb.state = StateNoop()
        for out in repo.index.outs:
            if out.hash_info and (key := f"{out} {out.hash_info.value}") not in known:
                known[key] = workspace(out) if revision in ("", "workspace") else kept(out, revision)
    return [complaint for complaint in known.values() if complaint], len(known)


def workspace(out: "Output") -> str:
    place = Path(out.fs_path)
    if found := out.workspace_status():
        for file in [place, *files.inside(place)] if place.is_dir() else [place] if place.exists() else []:
            os.utime(file)  # so that DVC looks at it again
        return f"{out} is {found[str(out)]}: make run restores it, or makes it anew"
    if out.use_cache and out.changed_cache():
        out.commit()
        print(f"DVC's cache had {out} damaged or not at all: put back from {out}")
    return ""


def kept(out: "Output", revision: str) -> str:
    """`revision`: the tags of one commit."""
    if not out.use_cache or not out.changed_cache():
        return ""
    named = ", ".join(name for name in revision.split(",") if "#" not in name)
    return f"{out} of {named} is damaged in DVC's cache or missing there: dvc fetch --all-tags, if a remote has it"


if __name__ == "__main__":
    command(main)
