"""What would rerun and why; what a killed run leaves behind; profiles. Real DVC, no Prefect."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from flows import console, plan, profiles, recovery
from stages.lib.frame.errors import UserError


def test_every_stage_of_a_fresh_clone_never_ran(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    steps = plan.read()
    assert [step.name for step in steps][0] == "data@words"
    assert {step.name: step.needs for step in steps}["export@final"] == ["prune@left"]
    assert all(step.reasons == ["it never ran"] for step in steps)
    assert [step.name for step in plan.read(["prune@right"])] == ["data@words", "prune@right"]
    with pytest.raises(UserError, match=r"no stage 'prune@rigth'; there are: prune@right"):
        plan.read(["prune@rigth"])


def test_the_folder_of_a_stage_without_variants_is_empty_not_missing(project, monkeypatch):
    monkeypatch.chdir(project.folder)
    with Path("dvc.yaml").open("a") as file:
        file.write("  report:\n    cmd: 'true'\n    deps: [artifacts/align, artifacts/eval, elsewhere/align]\n")
    plan.read()
    assert [str(path) for path in Path("artifacts").iterdir()] == ["artifacts/align"]
    assert not Path("elsewhere").exists()  # a user's folder that is not there is missing


@pytest.mark.slow
def test_why_names_the_parameter_the_file_and_the_stage_above(done):
    assert all(step.settled for step in plan.read())
    done.params("prune.left.text", "L")
    (done.folder / "stages/export/toy.py").write_text((done.folder / "stages/export/toy.py").read_text() + "\n")
    (done.folder / "artifacts/eval/teacher/metrics.json").unlink()
    shown = plan.explain(plan.read())
    assert "prune@left: reruns\n    because parameter prune.left.text: l -> L\n" in shown
    assert "    because file stages/export/toy.py changed\n    because prune@left reruns\n" in shown
    assert "because output artifacts/eval/teacher/metrics.json is missing" in shown
    assert "eval@student: may rerun\n    because export@final reruns\n" in shown
    assert "prune@right: up to date\n" in shown and shown.endswith("3 of 6 stages rerun, 1 more may")


@pytest.mark.slow
def test_files_that_a_kill_truncated_are_put_right(done):
    good, lock, rwlock = done.lock(), done.folder / "dvc.lock", done.folder / ".dvc/tmp/rwlock"
    for damage in (good[: len(good) // 2].rstrip() + "\n   x: [", "", "stages: 7"):
        lock.write_text(damage)
        rwlock.write_text('{"write": {"/a')
        assert all(step.settled for step in plan.read())
        assert lock.read_text() == good and not rwlock.exists()


def test_locks_of_the_dead_are_released_and_of_the_living_kept(tmp_path):
    rwlock = tmp_path / "rwlock"
    gone = subprocess.Popen(["true"])
    gone.wait()
    mine, dead = {"pid": os.getpid(), "cmd": "dvc"}, {"pid": gone.pid, "cmd": "dvc"}
    rwlock.write_text(json.dumps({"write": {"/a": dead, "/b": mine}, "read": {"/c": [dead], "/d": [dead, mine]}}))
    recovery.release_dead(rwlock)
    assert json.loads(rwlock.read_text()) == {"write": {"/b": mine}, "read": {"/d": [mine]}}
    os.utime(rwlock, (0, 0))  # written before this process began: its number was another's then
    recovery.release_dead(rwlock)
    assert json.loads(rwlock.read_text()) == {"write": {}, "read": {}}


def test_a_profile_is_copied_unless_edits_would_be_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "infra/profiles").mkdir(parents=True)
    for name in ("laptop", "tiny"):
        (tmp_path / f"infra/profiles/{name}.yaml").write_text(f"name: {name}\n")
    profiles.use("tiny")
    profiles.use("laptop")
    assert (tmp_path / "params.yaml").read_text() == "name: laptop\n"
    (tmp_path / "params.yaml").write_text("name: mine\n")
    with pytest.raises(UserError, match="cp params.yaml"):
        profiles.use("tiny")
    assert (tmp_path / "params.yaml").read_text() == "name: mine\n"
    with pytest.raises(UserError, match="there are: laptop, tiny"):
        profiles.use("huge")


def test_progress_is_logged_every_half_minute(monkeypatch):
    clock = iter([0, 10, 31, 31, 62, 62])  # a second look notes when it told
    monkeypatch.setattr(console, "monotonic", clock.__next__)
    logged: list[str] = []
    output = console.Output("s", logged.append)
    for chunk in (b"\r 10%", b"\r 30%", b"\r 50%\r 60%"):
        output(chunk)
    assert logged == [" 30%", " 60%"]


def test_progress_is_not_logged_until_its_line_ends():
    logged: list[str] = []
    output = console.Output("s", logged.append)
    for chunk in (b"one\ntw", b"o\n 10%\r", b" 50%\r 9", b"0%\r100%", b"\nend\n"):
        output(chunk)
    assert logged == ["one", "two", "100%", "end"] and output.last == "end"
