"""Nothing leaves this machine, whatever is started: an audit hook in every Python process (tests/network)."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
HOOK = Path(__file__).parents[1] / "network"
OUTSIDE = "import socket; s = socket.socket(); s.settimeout(1); s.connect_ex(('192.0.2.1', 9))"  # RFC 5737: nobody's


@pytest.fixture
def watched(done, tmp_path):
    """A project whose processes are watched, and the log of it."""
    log = tmp_path / "network.log"
    done.environment |= {"NETWORK_LOG": str(log), "PYTHONPATH": f"{HOOK}{os.pathsep}{done.folder}"}
    return done, log


def outside(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("OUTSIDE")]


def test_the_hook_sees_what_goes_out_and_lets_pass_what_stays(watched):
    project, log = watched
    inside = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    project.run(sys.executable, "-c", inside)
    assert outside(log) == []
    project.run(sys.executable, "-c", OUTSIDE)
    [line] = outside(log)
    assert "socket.connect 192.0.2.1" in line
    project.run(
        sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])", OUTSIDE
    )
    assert len(outside(log)) == 2  # of a child too
    looked_up = "import socket\ntry: socket.getaddrinfo('orchard.invalid', 80)\nexcept OSError: pass"
    project.run(sys.executable, "-c", looked_up)
    assert "socket.getaddrinfo orchard.invalid" in outside(log)[-1]


def test_the_hook_reaches_a_stage_in_the_warm_process(watched):
    project, log = watched
    part = project.folder / "stages/prune/parts/ends.py"
    part.write_text(f"{OUTSIDE}\n{part.read_text()}")
    project.flow("prune@left")
    assert "192.0.2.1" in outside(log)[0]


@pytest.mark.parametrize("command", ["flows.lifecycle", "dvc repro"])
def test_a_run_stays_on_this_machine(watched, command):
    project, log = watched
    project.environment.pop("PREFECT_API_URL")  # a server of the flow's own, then
    project.params("data.words.text", "other words")
    project.run(sys.executable, "-m", *command.split())
    assert len(project.ran()) == 8
    processes = log.read_text().splitlines()
    assert len(processes) >= 4 and outside(log) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_ui_serves_both_pages_stays_on_this_machine_and_ends(watched, free_port, how):
    project, log = watched
    project.environment.pop("PREFECT_API_URL")
    ports = free_port(), free_port()
    command = [sys.executable, "-m", "apps.ui", "--mlflow-port", str(ports[0]), "--prefect-port", str(ports[1])]
    with (project.folder / "ui.log").open("w") as said:
        ui = subprocess.Popen(command, cwd=project.folder, env=project.environment, stdout=said, stderr=said)
        try:
            pages = [page(port, ui, Path(project.environment["PREFECT_HOME"])) for port in ports]
            strangers = [code(ports[0]), code(ports[0], Authorization="Basic b3JjaGFyZDp4")]
            foreign = [code(port, Host="evil.example") for port in ports]  # a page whose name points here
        finally:
            ui.send_signal(how)
            status = ui.wait(90)
    assert "<title>MLflow</title>" in pages[0] and "Prefect" in pages[1]
    assert status == (-9 if how == signal.SIGKILL else 0) and outside(log) == []
    assert strangers == [401, 401] and set(foreign) <= {400, 403}
    deadline = time.monotonic() + (30 if how == signal.SIGKILL else 0)
    while listening := [port for port in ports if not socket.socket().connect_ex(("127.0.0.1", port))]:
        assert time.monotonic() < deadline, listening
        time.sleep(0.5)


def code(port: int, **headers: str) -> int:
    """With which a server answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/", headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def page(port: int, ui: subprocess.Popen, home: Path) -> str:
    deadline = time.monotonic() + 120
    while True:
        try:
            known = base64.b64encode((home / "orchard.password").read_bytes()).decode()
            asked = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Authorization": f"Basic {known}"})
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            assert ui.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
