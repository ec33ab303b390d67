"""What would rerun and why, and what a killed run leaves behind. Real DVC, no Prefect."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from flows import console, plan, recovery
from stages.lib.frame import code, files
from stages.lib.frame.errors import UserError


@pytest.fixture
def read(monkeypatch):
    """read(project, targets): the plan in a project, whose code may have changed since the last call."""

    def read(project, targets=()):
        monkeypatch.chdir(project.folder)
        monkeypatch.setattr(code, "ROOT", project.folder)
        for function in (code.fingerprint, code.neighbours):
            function.cache_clear()
        return plan.read(targets)

    return read


def test_every_stage_of_a_fresh_clone_never_ran(project, read):
    steps = read(project)
    assert [step.name for step in steps][:2] == ["code", "data@words"]
    assert {step.name: step.needs for step in steps}["export@final"] == ["code", "prune@left"]
    assert all(step.reasons == ["it never ran"] for step in steps)
    assert [step.name for step in read(project, ["prune@right"])] == ["code", "data@words", "prune@right"]
    with pytest.raises(UserError, match=r"no stage 'prune@rigth'; there are: prune@right"):
        plan.read(["prune@rigth"])


def test_the_folder_of_a_stage_without_variants_is_empty_not_missing(project, read):
    with (project.folder / "dvc.yaml").open("a") as file:
        file.write("  report:\n    cmd: 'true'\n    deps: [artifacts/align, artifacts/eval, elsewhere/align]\n")
    read(project)
    assert sorted(str(path) for path in Path("artifacts").iterdir()) == ["artifacts/align", "artifacts/code"]
    assert not Path("elsewhere").exists()  # a user's folder that is not there is missing


@pytest.mark.slow
def test_why_names_the_parameter_the_source_file_and_the_stage_above(done, read):
    assert all(step.settled for step in read(done))
    done.params("prune.left.text", "L")
    done.replace("stages/export/parts/ends.py", "return text", 'return text + ""')
    (done.folder / "artifacts/eval/teacher/speed/metrics.json").unlink()
    shown = plan.explain(read(done))
    assert shown.startswith("4 of 9 stages rerun, 3 more may\n")
    assert "prune@left: reruns\n    because parameter prune.left.text: l -> L\n" in shown
    assert "    because stages/export/parts/ends.py changed\n    because prune@left reruns\n" in shown
    assert "because output artifacts/eval/teacher/speed/metrics.json is missing" in shown
    assert "accuracy@student: may rerun\n    because export@final reruns\n" in shown
    assert "prune@right" not in shown and "prune@right: up to date" in plan.explain(plan.read(), everything=True)


@pytest.mark.slow
def test_only_what_can_run_the_changed_code_reruns(done, read):
    """With the flow's plan and with plain dvc alike."""

    def changed():
        planned = {step.name for step in read(done) if step.reasons}
        status = json.loads(done.run("dvc", "status", "--json"))
        named = {name for name, why in status.items() if why != ["always changed"]}
        assert named == planned
        return planned - {"code"}

    part = done.folder / "stages/prune/parts/ends.py"
    part.write_text('"""A docstring."""\n\n\n# and a comment\n' + part.read_text().replace("def", "\n\ndef"))
    assert changed() == set()
    assert "didn't change" in done.run("dvc", "repro") and done.ran() == []
    done.replace("stages/prune/parts/ends.py", "return text", "return text * 1")
    assert changed() == {"prune@left", "prune@right"}
    done.replace("stages/prune/parts/ends.py", "return text * 1", "return text")
    done.replace("stages/eval/speed.py", "bytes: int = 90", "bytes: int = 91 - 1")
    assert changed() == {"speed@teacher", "speed@student"}


@pytest.mark.slow
def test_one_identity_for_dvc_prefect_and_lineage(done, read):
    steps = {step.name: step for step in read(done)}
    file = done.folder / "artifacts/code/prune/appends.json"
    assert steps["prune@left"].code == hashlib.md5(file.read_bytes()).hexdigest()[:8]
    shown = done.run("python", "-m", "flows.lineage", "prune/left")
    assert f"code {files.digest(file)[:12]}" in shown and "stages/lib" not in shown


@pytest.mark.slow
def test_why_says_so_where_the_old_code_is_gone(done, read):
    md5 = hashlib.md5((done.folder / "artifacts/code/export/appends.json").read_bytes()).hexdigest()
    (done.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()
    done.replace("stages/export/parts/ends.py", "return text", 'return text + ""')
    shown = plan.explain(read(done))
    assert "export@final: reruns\n    because its code changed; in which file can't be told" in shown


@pytest.mark.slow
def test_files_that_a_kill_truncated_are_put_right(done, read):
    good, lock, rwlock = done.lock(), done.folder / "dvc.lock", done.folder / ".dvc/tmp/rwlock"
    for damage in (good[: len(good) // 2].rstrip() + "\n   x: [", "", "stages: 7"):
        lock.write_text(damage)
        rwlock.write_text('{"write": {"/a')
        assert all(step.settled for step in read(done))
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
