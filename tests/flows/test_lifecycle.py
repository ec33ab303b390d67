"""The whole flow on a toy project: real DVC, Prefect, MLflow on SQLite, real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_same_lock_as_dvc_then_cached_then_only_what_changed(project, finished, tmp_path):
    shown = project.flow()
    assert "hello from data words warm" in shown, "DVC no longer calls dvc.stage.run._run: it ran in a cold shell"
    assert "6 completed" in shown and "export/final is champion: orchard-final version 1" in shown
    assert len(project.ran()) == 6
    assert finished.lock() == project.lock()  # bytes, in the same order, although siblings ran in parallel
    project.commit()
    assert "6 cached" in project.flow() and project.ran() == []

    project.params("prune.right.text", "R")
    shown = project.flow()
    assert project.ran() == ["prune@right"] and "1 completed" in shown
    assert "parameter prune.right.text: r -> R" in shown
    project.params("prune.right.text", "r")
    assert "1 restored, 5 cached" in ordered(project.flow()) and project.ran() == []  # from DVC's run-cache

    lineage = project.run(sys.executable, "-m", "flows.lineage", "orchard-final@champion")
    makers = [line.split()[2].rstrip(",") for line in lineage.splitlines() if "made by" in line]
    assert makers == ["export/final", "prune/left", "data/words"] and "raw: no stage makes it" in lineage
    elsewhere = project.environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/other.db"}
    lineage = type(project)(project.folder, elsewhere).run(sys.executable, "-m", "flows.lineage", "export/final")
    assert lineage.count("no run of it is recorded here, so this is from dvc.lock") == 3

    project.params("gates.accuracy_kept", 0.95)
    refused = project.run(sys.executable, "-m", "flows.promote", check=1)
    assert "export/final stays out of the registry: it keeps 90.0% of the teacher's accuracy; 95% wanted" in refused


def ordered(shown: str) -> str:
    return shown.replace("5 cached, 1 restored", "1 restored, 5 cached")


def test_a_failure_blocks_its_descendants_only(project):
    project.params("prune.left.text", "fail")
    shown = project.flow(check=1)
    assert sorted(project.ran()) == ["data@words", "prune@left", "prune@right"]
    assert "told to fail" in shown and "what it needs has failed" in shown
    assert (project.folder / "artifacts/prune/right/metrics.json").exists()
    assert not (project.folder / "artifacts/prune/left/metrics.json").exists()
    project.params("prune.left.text", "l")
    project.flow()
    assert sorted(project.ran()) == ["eval@student", "eval@teacher", "export@final", "prune@left"]


def test_bad_params_stop_before_anything_runs(project):
    project.params("prune.right.colour", "red")
    shown = project.flow(check=1)
    assert "params.yaml: prune.right.colour is not a parameter; there are: method, text, model" in shown
    assert project.ran() == [] and not (project.folder / "artifacts").exists()


def test_kill_9_leaves_no_orphan_and_the_next_run_converges(project, template, tmp_path):
    for variant in ("left", "right"):
        project.params(f"prune.{variant}.seconds", 4)
    command = [sys.executable, "-m", "flows.lifecycle"]
    flow = subprocess.Popen(command, cwd=project.folder, env=project.environment, stderr=subprocess.DEVNULL)
    log = project.folder / "ran.log"
    while not (log.exists() and "prune@left" in log.read_text()):
        assert flow.poll() is None
        time.sleep(0.05)
    os.kill(flow.pid, signal.SIGKILL)
    flow.wait()
    time.sleep(5)  # longer than the stages sleep
    assert (project.folder / "ended.log").read_text().split() == ["data@words"]
    deadline = time.monotonic() + 30  # the idle warm process needs some seconds to take its imports down
    while processes_in(project.folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_in(project.folder) == []
    project.ran()
    project.flow()
    assert "data@words" not in project.ran()

    plain = template.copy(tmp_path / "plain")
    (plain.folder / "params.yaml").write_text((project.folder / "params.yaml").read_text())
    plain.run("dvc", "repro", "-q")
    assert plain.lock() == project.lock()


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes that work in the folder."""
    import psutil

    found = []
    for process in psutil.process_iter(["cwd", "cmdline"]):
        if process.info["cwd"] == str(folder):
            found.append(" ".join(process.info["cmdline"] or []))
    return found
