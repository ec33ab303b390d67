"""The small real project of toy.py in the states that tests begin from, a Prefect server, S3."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.flows import toy
from tests.flows.toy import S3_KEYS, Project


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """One server for all tests: its first start creates a database, which takes longer than most tests."""
    from flows import server

    home = tmp_path_factory.mktemp("prefect")
    before = os.environ.copy()
    os.environ.pop("PREFECT_API_URL", None)
    os.environ["PREFECT_HOME"] = str(home)
    process = server.own()
    environment = {"PREFECT_HOME": str(home), "PREFECT_API_URL": os.environ["PREFECT_API_URL"]}
    os.environ.clear()
    os.environ.update(before)
    urlopen(f"{environment['PREFECT_API_URL']}/health", timeout=60).close()  # it listens before it answers
    yield environment
    process.stdin.close()
    process.wait(20)


@pytest.fixture(scope="session")
def template(tmp_path_factory, prefect_server) -> Project:
    """Committed, nothing has run."""
    return toy.build(tmp_path_factory.mktemp("template"), prefect_server)


@pytest.fixture(scope="session")
def finished(template, tmp_path_factory) -> Project:
    """After plain `dvc repro`, committed."""
    finished = template.copy(tmp_path_factory.mktemp("finished") / "project")
    finished.run("dvc", "repro", "-q")
    finished.commit()
    finished.ran()
    return finished


@pytest.fixture
def project(template, tmp_path) -> Project:
    """A copy of one's own, in which nothing has run."""
    return template.copy(tmp_path / "project")


@pytest.fixture
def done(finished, tmp_path, monkeypatch) -> Project:
    """A copy of one's own, up to date, as working directory."""
    copy = finished.copy(tmp_path / "project")
    monkeypatch.chdir(copy.folder)
    return copy


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """S3 as moto serves it: the address, and the file that it writes a line into for every request."""
    pytest.importorskip("dvc_s3")
    pytest.importorskip("moto")
    log, port = tmp_path_factory.mktemp("s3") / "log", a_free_port()
    with log.open("w") as file:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=file)
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert server.poll() is None
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}", log
    server.terminate()
    server.wait()


@pytest.fixture
def free_port():
    """A function that gives one."""
    return a_free_port


def a_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Bucket:
    """One of its own for a test."""

    def __init__(self, address: str, log: Path, name: str):
        import boto3

        self.client, self.name, self.log = boto3.client("s3"), name, log
        self.url, self.environment = f"s3://{name}/path", S3_KEYS | {"AWS_ENDPOINT_URL": address}
        self.client.create_bucket(Bucket=name)

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content)

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def names(self) -> list[str]:
        return [each["Key"] for each in self.client.list_objects_v2(Bucket=self.name).get("Contents", [])]

    def puts(self) -> int:
        """Since the beginning."""
        return self.log.read_text().count('"PUT ')


@pytest.fixture
def bucket(s3_server, monkeypatch, request) -> Bucket:
    for name, value in (S3_KEYS | {"AWS_ENDPOINT_URL": s3_server[0]}).items():
        monkeypatch.setenv(name, value)
    return Bucket(*s3_server, re.sub("[^a-z]+", "-", request.node.name).strip("-")[:60])
