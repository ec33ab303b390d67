"""The whole flow on a toy project: real DVC, Prefect, MLflow on SQLite, real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvc.repo import Repo

pytestmark = pytest.mark.slow


def test_same_lock_as_dvc_then_cached_then_only_what_changed(project, finished, tmp_path):
    shown = project.flow()
    assert "hello from data words warm" in shown, "DVC no longer calls dvc.stage.run._run: it ran in a cold shell"
    assert len(project.ran()) == 8  # and `code`, which has no toy in it
    assert finished.lock() == project.lock()  # bytes, in the same order, although siblings ran in parallel
    project.commit()
    shown = project.flow()
    assert project.ran() == [] and "Finished" not in shown  # not a line for a stage that had nothing to do

    project.params("prune.right.text", "R")
    assert "parameter prune.right.text: r -> R" in project.flow("--why")
    shown = project.flow()
    assert project.ran() == ["prune@right"] and "'prune@right' - Finished in state Completed" in shown
    project.params("prune.right.text", "r")
    assert "'prune@right' - Finished in state Restored" in project.flow()  # from DVC's run-cache
    assert project.ran() == []

    lineage = project.run(sys.executable, "-m", "flows.lineage", "orchard-final@champion")
    makers = [line.split()[2].rstrip(",") for line in lineage.splitlines() if "made by" in line]
    assert makers == ["export/final", "prune/left", "data/words"] and "raw: no stage makes it" in lineage
    told = json.loads(project.run(sys.executable, "-m", "flows.lineage", "orchard-final@champion", "--json"))
    assert [each["stage"] for each in told] == ["export/final", "prune/left", "data/words", ""]
    contents = [[each["path"], each["sha256"]] for each in told]
    assert [each["inputs"] for each in told] == [[content] for content in contents[1:]] + [[]]
    assert all(each["spent"]["seconds"] > 0 and len(each["run"]) == 32 for each in told[:3])
    priced = json.loads(
        project.run(sys.executable, "-m", "flows.lineage", "orchard-final@champion", "--json", "--kwh", "36")
    )
    for each in priced[:3]:  # 36 a kilowatt-hour are 0.00001 a joule
        assert 0 < each["spent"]["cost"] == pytest.approx(each["spent"]["joules"] * 1e-5)
    [end] = [line for line in lineage.splitlines() if line.startswith("in all ")]
    assert f"{sum(each['spent']['joules'] for each in told[:3]):,.0f} J" in end
    project.run(sys.executable, "-m", "flows.lineage", "export/final", "--picture", "lineage.svg")
    picture = (project.folder / "lineage.svg").read_text()
    assert picture.startswith("<svg") and all(name in picture for name in (*makers, "raw", told[0]["sha256"][:12]))
    elsewhere = project.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db"}
    lineage = type(project)(project.folder, elsewhere).run(sys.executable, "-m", "flows.lineage", "export/final")
    assert lineage.count("no run of it is recorded here, so this is from dvc.lock") == 3
    assert "artifacts/code" not in lineage

    project.params("gates.accuracy_kept", 0.95)
    refused = project.run(sys.executable, "-m", "flows.promote", check=1)
    assert "export/final is refused: it keeps 90.0% of the teacher's accuracy; 95% wanted" in refused


def test_the_end_is_for_a_person(done):
    """At most 80 columns, what was measured, where the model is and what to do next."""
    shown = done.flow()
    end = shown[: shown.rindex("make ui")].splitlines()[-6:]
    assert [line.split() for line in end[:3]] == [
        ["model", "MB", "accuracy", "(95", "%)", "kept", "tokens/s", "registry"],
        ["teacher", "0.00", "50.0%", "(45-55)", "100%", "100"],
        ["student", "0.00", "45.0%", "(40-50)", "90%", "100", "champion"],
    ]
    assert "model that ships  artifacts/export/final/model" in shown
    assert all(len(line) <= 80 for line in end)
    done.params("gates.bytes", 80)
    assert "export/final is refused:\n  it has 90 bytes; at most 80 allowed" in done.flow()


def test_a_comment_reruns_nothing_and_code_only_what_can_run_it(done):
    part = done.folder / "stages/prune/parts/ends.py"
    part.write_text(f"# a comment\n{part.read_text()}")
    done.flow()
    assert done.ran() == []
    done.replace("stages/prune/parts/ends.py", "return text", "return text * 1")
    assert "because stages/prune/parts/ends.py changed" in done.flow("--why")
    done.flow()
    assert sorted(done.ran()) == ["prune@left", "prune@right"]  # their outputs are as before
    assert "didn't change" in done.run("dvc", "repro") and done.ran() == []


def test_a_failure_blocks_its_descendants_only(project):
    project.params("prune.left.text", "fail")
    shown = project.flow(check=1)
    assert sorted(project.ran()) == ["data@words", "prune@left", "prune@right"]
    assert "Traceback" not in shown and "NotReady" not in shown
    assert "\nprune@left failed: told to fail\n" in shown
    assert (project.folder / "artifacts/prune/right/metrics.json").exists()
    assert not (project.folder / "artifacts/prune/left/metrics.json").exists()
    project.params("prune.left.text", "l")
    project.flow()
    measures = ["accuracy@student", "accuracy@teacher", "speed@student", "speed@teacher"]
    assert sorted(project.ran()) == sorted([*measures, "export@final", "prune@left"])


def test_another_folder_is_refused_in_one_line(project):
    (project.folder / "inside").mkdir()
    inside = type(project)(project.folder / "inside", project.environment)
    said = inside.run(sys.executable, "-m", "flows.lifecycle", check=1)
    assert "inside has no dvc.yaml and .dvc: start the flow in the project's own folder" in said
    assert "Traceback" not in said


def encoded(encoding: str):
    return lambda content: content.decode().encode(encoding)


DAMAGED_LOCKS = [
    encoded("utf-16"),
    lambda content: content + b"# \xe9\xff\n",
    lambda content: bytes(range(256)),
    lambda content: content.replace(b"hash: md5", b"hash: me5", 1),  # one flipped bit
]


@pytest.mark.parametrize("damage", DAMAGED_LOCKS)
def test_a_lock_file_that_is_no_text_is_the_committed_one_again(done, damage):
    lock, path = done.lock(), done.folder / "dvc.lock"
    path.write_bytes(damage(path.read_bytes()))
    assert "dvc.lock was damaged by a killed run: restored from the last commit" in done.flow()
    assert done.lock() == lock and done.ran() == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("  left:", "  \"x';touch SPRUNG;'\":"), ("right: {method: appends", "right: {method: appends;touch SPRUNG;"),
     ("model: data/words, seconds: 0}\n  right", "model: \"data/words';touch SPRUNG;'\", seconds: 0}\n  right"),
     ("student: export/final", "student: \"export/final;touch SPRUNG\"")],
)  # fmt: skip
def test_nothing_of_params_reaches_a_shell(project, old, new):
    """Neither by the flow nor by plain `dvc repro`, to which what comes before the shell is only a text."""
    project.replace("params.yaml", old, new)
    for command in (["dvc", "repro"], ["dvc", "repro", "--keep-going"], [sys.executable, "-m", "flows.lifecycle"]):
        said = project.run(*command, check=None)
        assert "SPRUNG" in said and "Traceback" not in said
        assert not list(project.folder.rglob("SPRUNG"))


def flipped(content: bytes) -> bytes:
    return content.replace(b"artifacts/", b"artifactz/", 1)


def halved(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize("damage", [flipped, halved, lambda _: bytes(range(256)), None], ids=[*"fhb", "gone"])
def test_a_damaged_record_of_a_run_is_none(done, damage):
    lock = done.lock()
    for path in (path for path in Path(".dvc/cache/runs").rglob("*") if path.is_file()):
        path.chmod(0o644)
        if damage:
            path.write_bytes(damage(path.read_bytes()))
        else:
            path.unlink()  # its folder stays, which plain DVC can't read
    (done.folder / "dvc.lock").unlink()
    shutil.rmtree("artifacts")
    done.flow()
    assert len(done.ran()) == 8 and done.lock() == lock


def databases(project) -> list[Path]:
    """DVC's and Prefect's; the latter of a home of the project's own."""
    home = project.folder / ".prefect"
    shutil.copytree(project.environment["PREFECT_HOME"], home)
    for part in home.glob("prefect.db-*"):
        part.unlink()
    project.environment["PREFECT_HOME"] = str(home)
    project.environment.pop("PREFECT_API_URL")
    with Repo() as repo:
        return [home / "prefect.db", *Path(repo.site_cache_dir).rglob("cache.db")]


@pytest.mark.parametrize("damage", [halved, lambda _: b"garbage" * 1000], ids=["cut", "garbage"])
def test_damaged_databases_are_mended(done, damage):
    found = databases(done)
    assert len(found) == 3
    for database in found:
        database.write_bytes(damage(database.read_bytes()))
    done.params("prune.right.text", "R")
    shown = done.flow()
    assert done.ran() == ["prune@right"] and "Traceback" not in shown
    assert shown.count("is damaged: removed, and DVC hashes everything anew") == 2
    assert "prefect.db, Prefect's, is damaged: kept as" in shown
    assert (done.folder / ".prefect/prefect.db.damaged-1").read_bytes() and "is damaged" not in done.flow()


def test_what_the_system_killed_says_so(project):
    project.params("prune.left.text", "killed")
    assert "prune@left failed: SIGKILL ended it, as the system does with what needs more memory" in project.flow(
        check=1
    )


def test_a_secret_stays_where_it_is(project):
    """What a stage says, of itself or in a traceback, goes to the terminal, Prefect's database and MLflow's."""
    secret = "planted-0123456789"
    project.environment["HF_TOKEN"] = secret
    part = "import os\n\n\ndef end(text: str) -> str:\n    print('it is', os.environ['HF_TOKEN'])\n"
    part += "    raise RuntimeError(os.environ['HF_TOKEN'])\n"
    (project.folder / "stages/prune/parts/ends.py").write_text(part)
    shown = project.flow(check=1)
    assert "it is <HF_TOKEN>" in shown and "RuntimeError: <HF_TOKEN>" in shown and secret not in shown
    for folder in (project.folder, Path(project.environment["PREFECT_HOME"])):
        kept = [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        assert kept == []


def test_bad_params_stop_before_anything_runs(project):
    project.params("prune.right.colour", "red")
    shown = project.flow(check=1)
    assert "params.yaml: prune.right.colour is not a parameter; there are: method, text, " in shown
    assert shown.splitlines()[-1].startswith("params.yaml: prune.right.colour")
    made = project.folder / "artifacts"
    assert project.ran() == [] and [path.name for path in made.iterdir()] == ["code"]


DAMAGES = {
    "flipped": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "cut": lambda content: content[:-1],
    "zeroed": lambda content: bytes(len(content)),
    "emptied": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_no_finished_stage(done, damage):
    """Every object of the cache, whole folders' lists among them, as a bad disk would: with its times and its mode."""
    lock = done.lock()
    outputs = [path for path in Path("artifacts").rglob("*") if path.is_file() and path.name != "timings.json"]
    good = {path: path.read_bytes() for path in outputs}
    objects = [path for path in Path(".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert len(objects) > 8
    for path in objects:
        before = path.stat()
        path.chmod(0o644)
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        path.chmod(before.st_mode)
    shutil.rmtree("artifacts")
    done.flow()
    assert {path: path.read_bytes() for path in good} == good
    assert len(done.ran()) >= 7 and done.lock() == lock  # one measures what another has, to the byte
    done.run("dvc", "checkout", "--force")  # and the cache is whole again
    assert {path: path.read_bytes() for path in good} == good


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_flow_ends_its_stages_at_once(project, how):
    """Those that run and those that wait for their turn."""
    for variant in ("left", "right"):
        project.params(f"prune.{variant}.seconds", 600)
    flow = started(project, "prune@left")
    os.kill(flow.pid, how)
    assert flow.wait(30) != 0
    assert (project.folder / "ended.log").read_text().split() == ["data@words"]
    assert_nobody_works_in(project.folder)
    for variant in ("left", "right"):
        project.params(f"prune.{variant}.seconds", 0)
    project.flow()


def test_kill_9_leaves_no_orphan_and_the_next_run_converges(project, template, tmp_path):
    for variant in ("left", "right"):
        project.params(f"prune.{variant}.seconds", 4)
    flow = started(project, "prune@left")
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    time.sleep(5)  # longer than the stages sleep
    assert (project.folder / "ended.log").read_text().split() == ["data@words"]
    assert_nobody_works_in(project.folder)
    project.ran()
    project.flow()
    assert "data@words" not in project.ran()

    plain = template.copy(tmp_path / "plain")
    (plain.folder / "params.yaml").write_text((project.folder / "params.yaml").read_text())
    plain.run("dvc", "repro", "-q")
    assert plain.lock() == project.lock()


def test_a_stage_ends_with_the_plain_dvc_that_runs_it(project):
    project.params("prune.left.seconds", 6)
    with (project.folder / "dvc.log").open("w") as log:
        command = ["dvc", "repro", "prune@left"]
        dvc = subprocess.Popen(command, cwd=project.folder, env=project.environment, stdout=log, stderr=log)
    ran = project.folder / "ran.log"
    while not (ran.exists() and "prune@left" in ran.read_text()):
        assert dvc.poll() is None
        time.sleep(0.1)
    os.kill(dvc.pid, signal.SIGKILL)
    dvc.wait()
    time.sleep(7)
    assert "prune@left" not in (project.folder / "ended.log").read_text()
    assert_nobody_works_in(project.folder)
    project.flow("prune@left")
    assert "prune@left" in (project.folder / "ended.log").read_text()


def started(project, stage: str) -> subprocess.Popen:
    """A flow in which that stage has begun."""
    command = [sys.executable, "-m", "flows.lifecycle"]
    flow = subprocess.Popen(command, cwd=project.folder, env=project.environment, stderr=subprocess.DEVNULL)
    log = project.folder / "ran.log"
    while not (log.exists() and stage in log.read_text()):
        assert flow.poll() is None
        time.sleep(0.05)
    return flow


def assert_nobody_works_in(folder: Path) -> None:
    deadline = time.monotonic() + 30  # the idle warm process needs some seconds to take its imports down
    while processes_in(folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_in(folder) == []


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes that work in the folder."""
    import psutil

    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(folder):
            found.append(" ".join(process.info["cmdline"] or []))
    return found
