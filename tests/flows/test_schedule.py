"""make schedule: a real worker of Prefect on the toy project."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
AS_A_FLOW = "from flows import server; server.start()"  # which knows the server's password


def eventually(what, patience: float = 120):
    """What `what` returns as soon as that is something."""
    end = time.monotonic() + patience
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.3)
    return found


def states(project) -> list[str]:
    """Of the deployment's runs, the first one first."""
    code = f"""{AS_A_FLOW}
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    [found] = [each for each in client.read_deployments() if each.name == "retrain" and each.tags == [PROJECT]]
    runs = [run for run in client.read_flow_runs() if run.deployment_id == found.id]
    print(*(run.state.name for run in sorted(runs, key=lambda run: run.created)))
"""
    return project.run(sys.executable, "-c", code.replace("PROJECT", repr(str(project.folder)))).split()


def due(project) -> None:
    code = f"{AS_A_FLOW}; from prefect.deployments import run_deployment; run_deployment('retrain/retrain', timeout=0)"
    project.run(sys.executable, "-c", code)


def test_changed_data_are_used_and_what_is_due_meanwhile_is_one_run_more(done):
    log = (done.folder / "schedule.log").open("wb")
    environment = done.environment | {"PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "apps.schedule", "--every", "1"]
    scheduled = subprocess.Popen(command, cwd=done.folder, env=environment, stdout=log, stderr=log)
    said = Path(log.name).read_text
    try:
        eventually(lambda: "Ctrl-C ends it" in said() and "started" in said().lower())
        done.params("prune.left.seconds", 20)
        (done.folder / "raw").write_text("rawer ")
        eventually(lambda: "prune@left" in (done.folder / "ran.log").read_text() if _ran(done) else False)
        for _ in range(3):
            due(done)
        time.sleep(5)
        assert states(done)[0] == "Running"
        assert Path("artifacts/data/words/model/text").read_text() == "rawer words"
        ends = eventually(lambda: found if {"Running", "Pending"}.isdisjoint(found := states(done)[:4]) and
                          "AwaitingConcurrencySlot" not in found and "Scheduled" not in found else None)  # fmt: skip
        assert sorted(ends) == ["Cancelled", "Cancelled", "Completed", "Completed"]
    finally:
        scheduled.send_signal(signal.SIGINT)
        scheduled.wait(30)


def _ran(project) -> bool:
    return (project.folder / "ran.log").exists()
