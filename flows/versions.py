"""What the model registry has taken in, kept in git, so that DVC still has the files when the next run has made others.

NAME@SHA256   a version: its content's first twelve digits. The tag's commit, which is on no branch, holds all tracked
              files as they were, params.yaml and dvc.lock among them: what DVC needs to find the version's own files
              and whatever they were made from. `dvc gc --all-tags` keeps those.
NAME#champion#N   the N-th time that a version became champion, or was again after a rollback; the last one counts.

`git push --tags` and `dvc push --all-tags` hand them to other machines.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from flows.distrust import distrust_cache
from stages.lib.frame import files, tracking
from stages.lib.frame.errors import UserError
from stages.lib.frame.params import CHAMPION

if TYPE_CHECKING:
    from dvc.repo import Repo

RELEASES = Path("releases")
LISTED = ("for-each-ref", "--sort=creatordate", "--format=%(refname:strip=2)%00%(contents)%00")
ITSELF = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
          for what, value in {"NAME": "Orchard", "EMAIL": "orchard@localhost"}.items()}  # fmt: skip


@dataclass(frozen=True)
class Version:
    """One content of a registered model."""

    name: str
    path: str  # where the stage has written it
    sha256: str

    @property
    def tag(self) -> str:
        return f"{self.name}@{self.sha256[:12]}"


def keep(version: Version) -> None:
    """Tag it, unless it has its tag. Caller has just seen the sha256 at its path."""
    if not has_git() or tags(version.tag):
        return
    require_recorded(version)
    tag(version.tag, snapshot(version.tag), asdict(version))


def kept() -> list[Version]:
    """All that have their tag, the oldest first."""
    return [Version(**said) for tag, said in tags("*@*").items() if "#" not in tag]


def crown(export: Version, source: Version, rollback: bool = False) -> None:
    """They are champions from now on, unless they are. The export's tag is the last and decides: where a kill has left
    the source's alone, it is written over."""
    if not has_git() or (not rollback and champions(export.name)[-1:] == [export]):
        return
    number = max(reigns(export.name), default=0) + 1
    for each in (source, export):
        name, said = f"{each.name}#{CHAMPION}#{number}", asdict(each) | {"rollback": rollback}
        tag(name, each.tag, said, "--force")


def champions(name: str) -> list[Version]:
    """Champions so far, the present one last, without those that were rolled back."""
    return reign(name)[0]


def reign(name: str) -> tuple[list[Version], list[Version]]:
    """Champions that stand, and those that were rolled back and not made champion again."""
    standing: list[Version] = []
    fallen: list[Version] = []
    for _, said in sorted(reigns(name).items()):
        if said.pop("rollback"):
            fallen.append(standing.pop())
            continue
        version = Version(**said)
        standing.append(version)
        fallen = [each for each in fallen if each != version]
    return standing, fallen


def reigns(name: str) -> dict[int, dict[str, Any]]:
    prefix = f"{name}#{CHAMPION}#"
    return {int(tag.removeprefix(prefix)): said for tag, said in tags(f"{prefix}*").items()}


def find(named: str) -> Version:
    """Of NAME@ALIAS or NAME@SHA256. An alias is the registry's; where that knows no such name, champions are git's."""
    name, _, which = named.partition("@")
    if tracking.present() and (found := tracking.registered(name, which)):
        return Version(name, str(found[1]), found[2])
    if which == CHAMPION and (standing := champions(name)):
        return standing[-1]
    there = tags(f"{name}@*")
    fitting = [said for tag, said in there.items() if which and tag.startswith(named)]
    if len(fitting) == 1:
        return Version(**fitting[0])
    raise UserError(
        f"neither the model registry nor git has {named}; git has "
        f"{', '.join(there or tags('*@*')) or 'no versions'} (git fetch --tags brings those of other machines)"
    )


def fetch(version: Version, folder: Path) -> None:
    """Its files, from DVC's cache or else its remote; nothing is written unless their sha256 is the registered one."""
    if folder.exists():
        raise UserError(f"{folder} is there already: name a new folder")
    (above := folder.absolute().parent).mkdir(parents=True, exist_ok=True)
    with then(version) as artefacts, TemporaryDirectory(dir=above, prefix=f".{folder.name}.") as beside:
        artefacts.get(version.path, f"{beside}/model")
        if (found := files.digest(Path(beside, "model"))) != version.sha256:
            raise UserError(f"{version.tag}: DVC has {version.path} with the sha256 {found[:12]}, another one")
        Path(beside, "model").rename(folder)


def at_hand(version: Version) -> Path:
    """Where its files are; fetched beside the releases where another run has written over those of its stage."""
    places = Path(version.path), RELEASES / version.tag / "model"
    for place in places:
        if place.exists() and files.digest(place) == version.sha256:
            return place
    files.remove(places[-1])
    fetch(version, places[-1])
    return places[-1]


class Artefacts:
    """Those of the project as it was when a version was registered, from DVC's cache or else its remote."""

    def __init__(self, repo: "Repo"):
        self.repo = repo

    def get(self, path: str, target: str) -> None:
        check(self.repo, path)
        self.repo.dvcfs.get(path, target)

    def lines(self, path: str) -> Iterator[bytes]:
        """Of a file in a folder that a stage wrote."""
        check(self.repo, str(Path(path).parent))
        with self.repo.dvcfs.open(path, "rb") as file:
            yield from file

    def records(self) -> dict[str, str]:
        """The folders that the stage `data` wrote, with DVC's hash of each; of traces the prompts are in those."""
        outs = ((str(out), out.hash_info) for out in self.repo.index.outs)
        return {path: str(found.value) for path, found in outs if found and Path(path).match("data/*/records")}


@contextmanager
def then(version: Version) -> Iterator[Artefacts]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not tags(version.tag):
        raise UserError(f"git has no tag {version.tag}: git fetch --tags brings those of other machines")
    distrust_cache()
    try:
        with Repo(_wait_for_lock=True) as here:
            config = dict(here.config)  # remotes are today's
        with Repo(rev=version.tag, config=config) as repo:
            yield Artefacts(repo)
    except (DvcException, FileNotFoundError) as error:
        raise UserError(f"{version.tag}: DVC has not all its files, neither here nor in a remote: {error}") from error


def check(repo: "Repo", path: str) -> None:
    """Hash what DVC's cache holds of it; damaged objects are removed, so that a remote is asked for them."""
    from dvc_objects.errors import ObjectFormatError

    [out] = repo.find_outs_by_path(path)
    cache = repo.cache.local
    assert out.hash_info
    for oid in [out.hash_info.value, *(each.value for objects in out.get_used_objs().values() for each in objects)]:
        with suppress(FileNotFoundError, ObjectFormatError):
            cache.check(oid)


def require_recorded(version: Version) -> None:
    """What lies there must be what dvc.lock says, or the tag would promise files that DVC has not."""
    from dvc.repo import Repo

    with Repo(_wait_for_lock=True) as repo:
        [out] = repo.find_outs_by_path(version.path)
        if found := out.status():
            raise UserError(f"{version.path} can't be registered, for it is not what dvc.lock says ({found}): make run")


def has_git() -> bool:
    return git("rev-parse", "--git-dir", check=False) != ""


def tags(pattern: str) -> dict[str, dict[str, Any]]:
    """What ours say, by name; a person's own tag that is called so says no object of JSON."""
    shown = git(*LISTED, f"refs/tags/{pattern}", check=False)
    fields = shown.split("\0")
    found = {}
    for name, said in zip(fields[::2], fields[1::2], strict=False):
        with suppress(ValueError):
            if isinstance(told := json.loads(said), dict):
                found[name.strip()] = told
    return found


def tag(name: str, target: str, said: dict[str, Any], *options: str) -> None:
    message = json.dumps(said, sort_keys=True)
    git("tag", "--annotate", "--no-sign", *options, "--message", message, name, f"{target}^{{}}")


def snapshot(message: str) -> str:
    """A commit of the tracked files as they are now, on no branch."""
    with TemporaryDirectory() as place:
        index = f"{place}/index"
        git("read-tree", "HEAD", index=index)
        git("add", "--update", "--", ".", index=index)
        git("add", "--force", "--", "params.yaml", "dvc.yaml", "dvc.lock", index=index)
        tree = git("write-tree", index=index)
    return git("commit-tree", tree, "-p", "HEAD", "-m", message)


def git(*arguments: str, check: bool = True, index: str | None = None) -> str:
    environment = os.environ | ITSELF | ({"GIT_INDEX_FILE": index} if index else {})
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, env=environment)
    if check and done.returncode:
        raise UserError(f"git {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return "" if done.returncode else done.stdout.strip("\n")
