"""What the registry took in can be had again: real git, DVC, MLflow on SQLite; the toy project's real artefacts."""

import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from apps.parts import catalog
from flows import fetch, promote, rollback, verify, versions
from stages.lib.frame import tracking
from stages.lib.frame.errors import UserError

pytestmark = pytest.mark.slow
FINAL = Path("artifacts/export/final/model")


@pytest.fixture
def project(done, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{done.folder}/mlflow.db")
    return done


def make(project, text, **changes):
    """Another content of the export that ships, made by DVC; what the gates and the registry say."""
    for place, value in ({"export.final.text": text} | changes).items():
        project.params(place, value)
    project.run("dvc", "repro", "-q")
    return promote.offer()[-1]


def fetched(named, folder):
    fetch.main(named, folder)
    return (folder / "text").read_text()


def test_a_champion_outlives_the_runs_after_it(project, tmp_path):
    assert promote.offer() == ["export/final is champion: orchard-final version 1"]
    first = versions.find("orchard-final@champion")
    equal = "50.0% of 50 problems right where the champion has 50.0%: +0.0 points (-3.8 to +3.8, p 1)"
    assert make(project, "E") == f"export/final is champion: orchard-final version 2 ({equal})"
    assert fetched("orchard-final@champion", tmp_path / "second") == "raw wordslE"
    assert fetched(first.tag, tmp_path / "first") == "raw wordsle"
    assert "refused" in make(project, "bad", **{"eval.accuracy.by_name.student": 0.1})
    assert FINAL.joinpath("text").read_text() == "raw wordslbad"
    assert fetched("orchard-final@champion", tmp_path / "still") == "raw wordslE"


def test_rolled_back_to_the_byte_also_after_gc(project, tmp_path, capsys):
    promote.offer()
    make(project, "E")
    make(project, "third")
    make(project, "candidate", **{"gates.bytes": 1})  # refused, so nobody needs it
    project.run(sys.executable, "-m", "flows.gc")
    rollback.main("orchard-final")
    assert tracking.registered("orchard-final", "champion")[0] == "2"
    assert fetched("orchard-final@champion", tmp_path / "second") == "raw wordslE"
    rollback.main("orchard-final")
    assert fetched("orchard-final@champion", tmp_path / "first") == "raw wordsle"
    source = versions.find("orchard-final-source@champion")
    assert source.path == "artifacts/prune/left/model" and fetched(source.tag, tmp_path / "source") == "raw wordsl"
    with pytest.raises(UserError, match="git knows of no champion of orchard-final before orchard-final@"):
        rollback.main("orchard-final")


def test_a_flow_does_not_undo_a_rollback_and_a_person_can(project):
    promote.offer()
    make(project, "E")
    rollback.main("orchard-final")
    for _ in range(2):
        [said] = promote.offer()
        assert said.startswith("export/final is candidate: orchard-final version 2 (it was champion and rolled back;")
        assert tracking.registered("orchard-final", "champion")[0] == "1"
    assert promote.offer(by_hand=True) == ["export/final is champion: orchard-final version 2"]
    assert promote.offer() == ["export/final is champion: orchard-final version 2"]
    rollback.main("orchard-final")
    assert tracking.registered("orchard-final", "champion")[0] == "1"


def test_a_coronation_that_was_killed_half_way_is_made_good(project):
    promote.offer()
    [first] = versions.champions("orchard-final-source")
    said = asdict(first) | {"rollback": False}
    versions.tag("orchard-final-source#champion#2", first.tag, said)  # and the export's would have come next
    make(project, "E", **{"prune.left.text": "L"})
    assert len(versions.champions("orchard-final")) == 2
    assert versions.champions("orchard-final-source") == [first, versions.find("orchard-final-source@champion")]
    rollback.main("orchard-final")
    assert versions.find("orchard-final-source@champion") == first


def test_gc_keeps_what_is_needed_and_the_rest_runs_again(project):
    promote.offer()
    project.params("prune.right.text", "other")
    project.run("dvc", "repro", "-q")
    project.params("prune.right.text", "r")
    project.run("dvc", "repro", "-q")
    project.ran()
    project.run(sys.executable, "-m", "flows.gc")
    assert project.run("dvc", "status").split() == ["code:", "always", "changed"]
    project.params("prune.right.text", "other")
    project.run("dvc", "repro", "-q")
    assert project.ran() == ["prune@right"]


def test_gc_forgets_old_runs_that_made_nothing_needed(project):
    def runs():
        with tracking.client() as mlflow:
            found = mlflow.search_runs([tracking.experiment(mlflow)])
        return [f"{run.data.tags.get('orchard.stage')}/{run.data.tags.get('orchard.variant')}" for run in found]

    promote.offer()
    project.params("export.final.text", "E")
    project.params("prune.right.text", "other")
    project.flow()
    project.params("prune.right.text", "r")
    project.flow()
    before, size = runs(), Path("mlflow.db").stat().st_size
    assert "0 runs removed" in project.run(sys.executable, "-m", "flows.gc") and runs() == before
    said = project.run(sys.executable, "-m", "flows.gc", "--days", "0")
    assert "Prefect: 2 runs of flows removed" in said
    assert before.count("prune/right") == 2 and runs().count("prune/right") == 1
    assert runs().count("export/final") == 2  # the version before is registered
    lineage = project.run(sys.executable, "-m", "flows.lineage", "orchard-final@champion")
    assert lineage.count(", run ") == 3 and Path("mlflow.db").stat().st_size <= size
    assert "Prefect: 0 runs" in project.run(sys.executable, "-m", "flows.gc", "--days", "0")


def test_no_branch_and_no_file_of_the_project_moves(project):
    before = project.run("git", "log", "--oneline"), project.run("git", "status", "--porcelain")
    promote.offer()
    assert before == (project.run("git", "log", "--oneline"), project.run("git", "status", "--porcelain"))
    make(project, "E")
    kept = versions.find("orchard-final@champion").tag
    assert project.run("git", "show", f"{kept}:dvc.lock") == project.lock()
    assert project.run("git", "show", f"{kept}:params.yaml") == (project.folder / "params.yaml").read_text()
    assert project.run("git", "status", "--porcelain").splitlines() == [" M dvc.lock", " M params.yaml"]


@pytest.mark.parametrize("remote", ["folder", "S3"])
def test_another_machine_has_it_with_two_commands(project, tmp_path, remote, request):
    """A clone without a model registry, DVC's cache or artefacts."""
    url = str(tmp_path / "store")
    if remote == "S3":
        url, keys = (bucket := request.getfixturevalue("bucket")).url, bucket.environment
        project.environment |= keys
    project.run(sys.executable, "-m", "flows.remote", url)
    project.commit()
    promote.offer()
    make(project, "E")
    project.run("dvc", "push", "-q", "--all-tags")
    project.run("git", "clone", "-q", str(project.folder), str(tmp_path / "clone"))
    there = type(project)(tmp_path / "clone", project.environment | {"PYTHONPATH": str(tmp_path / "clone")})
    there.environment.pop("MLFLOW_TRACKING_URI")
    there.run(sys.executable, "-m", "flows.fetch", "orchard-final@champion", "new/place")
    assert (there.folder / "new/place/text").read_text() == "raw wordslE"
    assert there.ran() == [] and not (there.folder / "mlflow.db").exists()


@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_object_is_never_handed_out(project, tmp_path, remote):
    promote.offer()
    if remote:
        project.run("dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
        project.run("dvc", "push", "-q", "--all-tags")
    damage(cached("raw wordsle"), "raw Wordsle")
    if remote:
        assert fetched("orchard-final@champion", tmp_path / "new") == "raw wordsle"
        return
    with pytest.raises(UserError, match="DVC has not all its files, neither here nor in a remote"):
        fetch.main("orchard-final@champion", tmp_path / "new")
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".new*"))


def test_bad_names_and_places_are_refused(project, tmp_path):
    promote.offer()
    tag = versions.find("orchard-final@champion").tag
    for name in ("orchard-final@nobody", "orchard-final@", "orchard-final"):
        with pytest.raises(UserError, match=f"neither the model registry nor git has {name}; git has {tag} "):
            versions.find(name)
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="mine is there already: name a new folder"):
        fetch.main(tag, tmp_path / "mine")
    (FINAL / "text").write_text("by hand")
    with pytest.raises(UserError, match="can't be registered, for it is not what dvc.lock says .*modified"):
        promote.offer()
    assert tracking.registered("orchard-final", "champion")[0] == "1"


def test_without_git_the_registry_still_works(project, monkeypatch):
    shutil.rmtree(".git")
    subprocess.run(["dvc", "config", "core.no_scm", "true"], check=True, env=project.environment)
    assert promote.offer() == ["export/final is champion: orchard-final version 1"]


def test_the_chat_opens_the_champion_whatever_lies_at_its_path(project):
    promote.offer()
    assert catalog.find("orchard-final@champion") == FINAL
    make(project, "bad", **{"eval.accuracy.by_name.student": 0.1})
    for _ in range(2):
        place = catalog.find("orchard-final@champion")
        assert (place / "text").read_text() == "raw wordsle" and "releases" in place.parts


def damage(path: Path, text: str) -> None:
    """As a bad disk does: same size, same times."""
    before = path.stat()
    path.chmod(0o644)
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(before.st_mode)


def cached(text: str) -> Path:
    [path] = [file for file in Path(".dvc/cache/files").rglob("*") if file.is_file() and file.read_text() == text]
    return path


def verified(capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        verify.main()
    return end.value.code, capsys.readouterr().out


def test_what_a_disk_changed_in_place_is_found_and_put_right(project, capsys):
    promote.offer()
    assert verified(capsys)[0] == 0
    damage(FINAL / "text", "raw Wordsle")
    assert verified(capsys)[0] == 1
    project.run("dvc", "repro", "-q")
    assert (FINAL / "text").read_text() == "raw wordsle" and verified(capsys)[0] == 0
    damage(cached("raw wordsle"), "raw Wordsle")
    code, said = verified(capsys)
    assert code == 0 and "put back from artifacts/export/final/model" in said
    assert cached("raw wordsle")


def test_a_version_that_a_disk_has_damaged_is_named(project, capsys):
    promote.offer()
    tag = versions.find("orchard-final@champion").tag
    make(project, "E")
    damage(cached("raw wordsle"), "raw Wordsle")
    code, said = verified(capsys)
    assert code == 1 and f"artifacts/export/final/model of {tag} is damaged in DVC's cache or missing" in said
    shutil.rmtree("artifacts/prune")
    assert "artifacts/prune/left/model is deleted: make run" in verified(capsys)[1]
