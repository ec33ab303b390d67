"""All runs in a browser: MLflow on http://127.0.0.1:5000 and Prefect on http://127.0.0.1:4200, until Ctrl-C.

python -m apps.ui
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import flows  # noqa: F401  (no telemetry, and Prefect's settings, in this process and so in both servers)
from stages.lib.frame import tracking
from stages.lib.frame.errors import UserError, command

HOST, MLFLOW, PREFECT = "127.0.0.1", 5000, 4200


def main(*, mlflow_port: int = MLFLOW, prefect_port: int = PREFECT) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    where = ["--backend-store-uri", tracking.store()]
    commands = {
        "MLflow": ["mlflow", "ui", "--workers", "1", "--host", HOST, "--port", str(mlflow_port), *where],
        "Prefect": ["prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)],
    }
    try:
        with servers(commands) as started:
            print(f"MLflow   http://{HOST}:{mlflow_port}\nPrefect  http://{HOST}:{prefect_port}\nCtrl-C ends both.")
            while not (ended := [name for name, server in started.items() if server.poll() is not None]):
                time.sleep(0.2)
    except KeyboardInterrupt:
        return
    raise UserError(f"{' and '.join(ended)} ended by itself: its last lines above say why; is its port taken?")


@contextmanager
def servers(commands: dict[str, list[str]]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Each in a process group of its own, for they start workers; all end with the block."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, words in commands.items():
            started[name] = subprocess.Popen([sys.executable, "-m", *words], start_new_session=True)
        yield started
    finally:
        for server in started.values():
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
        for server in started.values():
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


if __name__ == "__main__":
    command(main)
