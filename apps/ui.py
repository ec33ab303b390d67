"""All runs in a browser: MLflow on http://127.0.0.1:5000 and Prefect on http://127.0.0.1:4200, until Ctrl-C.

python -m apps.ui
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from flows import server  # and with the package no telemetry, and Prefect's settings, here and so in both servers
from stages.lib.frame import tracking
from stages.lib.frame.errors import UserError, command

# Before a command: it ends, with all that it starts, when what has started it ends in whatever way.
BOUND = ["sh", "-c", 'exec 3<&0; (cat <&3; kill 0) & exec "$@" < /dev/null 3<&-', "sh"]
PRUNES = {"PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs"}  # runs that ended 90 days ago
HOST, MLFLOW, PREFECT = server.HOST, 5000, server.USUAL_PORT


def main(*, mlflow_port: int = MLFLOW, prefect_port: int = PREFECT) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        with servers(mlflow_port, prefect_port) as started:
            user, _, password = server.password().partition(":")
            print(f"MLflow   http://{HOST}:{mlflow_port}    asks for user and password: {user}, {password}")
            print(f"Prefect  http://{HOST}:{prefect_port}    asks for them in one, once: {server.password()}")
            print("Ctrl-C ends both.")
            while not (ended := [name for name, server in started.items() if server.poll() is not None]):
                time.sleep(0.2)
    except KeyboardInterrupt:
        return
    raise UserError(f"{' and '.join(ended)} ended by itself: its last lines above say why; is its port taken?")


@contextmanager
def servers(mlflow_port: int, prefect_port: int) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Each in a process group of its own, for they start workers; all end with the block."""
    mlflow = [*BOUND, sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    mlflow += ["--host", HOST, "--port", str(mlflow_port)]
    mlflow += ["--app-name", "basic-auth", "--backend-store-uri", tracking.store()]
    started: dict[str, subprocess.Popen[bytes]] = {}
    with TemporaryDirectory() as folder:
        try:
            with listening(prefect_port) as listener:
                started["Prefect"] = server.process(listener, PRUNES | {"PREFECT_SERVER_API_PORT": str(prefect_port)})
            environment = os.environ | one_user(Path(folder))
            started["MLflow"] = subprocess.Popen(mlflow, env=environment, stdin=subprocess.PIPE, start_new_session=True)
            yield started
        finally:
            for running in started.values():
                if running.poll() is None:
                    os.killpg(running.pid, signal.SIGTERM)
            for running in started.values():
                try:
                    running.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(running.pid, signal.SIGKILL)


def one_user(folder: Path) -> dict[str, str]:
    """Variables by which MLflow knows the user and password of Prefect's servers, and nobody else; whom it knows it
    writes into `folder`, so that a new password counts at the next start."""
    user, _, password = server.password().partition(":")
    config = folder / "users.ini"
    config.write_text(f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/users.db\n")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(),
    }


def listening(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port), backlog=128)
    except OSError as error:
        raise UserError(f"can't listen on port {port} ({error.strerror}): --prefect-port names another") from error


if __name__ == "__main__":
    command(main)
