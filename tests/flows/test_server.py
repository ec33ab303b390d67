"""A server that is named and does not answer is told at once, not after minutes: real sockets."""

import base64
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from flows import server
from stages.lib.frame import tracking
from stages.lib.frame.errors import UserError


@pytest.fixture(params=["closed", "silent"])
def dead(request):
    """The address of a port that nobody listens on, or where a connection is taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if request.param == "closed":
            server.close()
        yield f"http://127.0.0.1:{port}"


def test_a_server_that_answers_is_enough_whatever_it_says(prefect_server):
    tracking.require_server("PREFECT_API_URL", prefect_server["PREFECT_API_URL"])
    tracking.require_server("PREFECT_API_URL", prefect_server["PREFECT_API_URL"] + "/no/such/page")


def test_the_message_names_the_variable_and_the_address(dead):
    start = time.monotonic()
    with pytest.raises(UserError, match=f"MLFLOW_TRACKING_URI is {dead}, and no server answers there within 5 s"):
        tracking.require_server("MLFLOW_TRACKING_URI", dead)
    assert time.monotonic() - start < 7


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL"])
def test_the_flow_says_so_before_any_work(project, dead, variable):
    project.environment[variable] = dead
    assert_one_line(project.flow(check=1), variable)
    assert project.ran() == [] and not (project.folder / "artifacts").exists()


@pytest.mark.slow
def test_a_stage_by_itself_says_so_too(done, dead):
    done.environment["MLFLOW_TRACKING_URI"] = dead
    command = "-m stages.data words --source raw --code artifacts/code/data/appends.json --out artifacts/data/words"
    start = time.monotonic()
    assert_one_line(done.run(sys.executable, *command.split(), check=1), "MLFLOW_TRACKING_URI")
    assert time.monotonic() - start < 20 and done.ran() == []


def assert_one_line(shown: str, variable: str) -> None:
    [line] = shown.strip().splitlines()
    assert line.startswith(f"{variable} is http://127.0.0.1:") and "no server answers" in line


@pytest.mark.slow
def test_the_servers_in_use_are_named(done):
    shown = done.flow()
    assert f"MLflow: sqlite:///mlflow.db   Prefect: {done.environment['PREFECT_API_URL']}\n" in shown


def asked(address: str, **headers: str) -> int:
    try:
        with urlopen(
            Request(f"{address}/deployments/count", b"{}", {"Content-Type": "application/json"} | headers)
        ) as said:
            return said.status
    except HTTPError as error:
        return error.code


def test_a_page_of_another_site_is_refused_by_whatever_name(prefect_server):
    address = prefect_server["PREFECT_API_URL"]
    here = address.removeprefix("http://").removesuffix("/api")
    known = base64.b64encode((Path(prefect_server["PREFECT_HOME"]) / "orchard.password").read_bytes()).decode()
    assert asked(address) == asked(address, Authorization="Basic b3JjaGFyZDp4") == 401
    assert asked(address, Authorization=f"Basic {known}", Origin=f"http://{here}") == 200
    assert asked(address, Origin="http://evil.example") == asked(address, Origin="null") == 403
    assert asked(address, Origin=f"http://{here.partition(':')[0]}:1") == 403
    assert asked(address, Host="evil.example", Origin="http://evil.example") == 400  # a name that points here


def test_the_password_is_its_owners_alone_and_the_same_for_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    with ThreadPoolExecutor() as pool:
        found = set(pool.map(lambda _: server.password(), range(8)))
    assert found == {server.password()} and len(server.password()) > 30
    [file] = (tmp_path / "home").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_only_what_says_that_it_is_prefect_is_taken_for_it(prefect_server, dead, answering):
    assert server.is_prefect(prefect_server["PREFECT_API_URL"])
    assert not server.is_prefect(dead) and not server.is_prefect(answering.url)


def test_a_server_elsewhere_that_falls_silent_is_told(dead, monkeypatch):
    monkeypatch.setenv(server.ADDRESS, dead)
    monkeypatch.setattr(server, "SILENCE", 1)
    told: list[str] = []
    with server.watched(told.append):
        end = time.monotonic() + 20
        while not told and time.monotonic() < end:
            time.sleep(0.1)
    assert told and f"PREFECT_API_URL is {dead}, and for " in told[0] and "no server has answered" in told[0]


NEVER_ENDS = """
import asyncio, sys
from contextlib import asynccontextmanager
from prefect.server.api import server as prefect
from flows import server

@asynccontextmanager
async def lifespan(app):
    yield
    await asyncio.sleep(1000)

def create_app(real=prefect.create_app):
    app = real()
    app.router.lifespan_context = lifespan
    return app

prefect.create_app = create_app
server.serve(int(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_server_that_does_not_end_is_ended(prefect_server):
    listener = socket.create_server(("127.0.0.1", 0))
    descriptor, environment = listener.fileno(), os.environ | server.SETTINGS | prefect_server
    command = [sys.executable, "-c", NEVER_ENDS, str(descriptor)]
    running = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, pass_fds=[descriptor])
    urlopen(f"http://127.0.0.1:{listener.getsockname()[1]}/api/health", timeout=60).close()
    running.stdin.close()
    assert running.wait(server.GRACE + 60) == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_where_the_server_of_a_flow_is_killed_or_falls_silent_another_answers(prefect_server, monkeypatch, fault):
    monkeypatch.setattr(server, "SILENCE", 1)
    monkeypatch.setattr(server, "PULSE", 0.5)
    monkeypatch.setenv("PREFECT_HOME", prefect_server["PREFECT_HOME"])
    monkeypatch.delenv(server.ADDRESS, raising=False)
    process = server.own()
    health = f"{server.require().split()[0]}/health"
    urlopen(health, timeout=60).close()
    time.sleep(2 * server.PULSE)  # in which it is seen to answer
    process.send_signal(fault)
    process.wait(60)
    with urlopen(health, timeout=60) as answer:
        assert answer.read() == b"true"
