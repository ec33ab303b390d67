"""On a node of a Ray cluster (the extra `cluster`). The flow waits here; the node knows nothing of Prefect or MLflow.

RAY_ADDRESS names the cluster; without it, it is the one that `ray start` has begun on this machine. Every node has in
ORCHARD_HOME a folder with Orchard's code, and keys for DVC's remote in its environment.
"""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from importlib import import_module
from threading import Lock
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat

from flows import remote, warm
from flows.runners import elsewhere
from flows.runners.elsewhere import Elsewhere, Tell
from stages.lib.frame.errors import UserError

CONNECTING = Lock()


class Ray(Elsewhere):
    on: Literal["ray"]
    resources: dict[str, PositiveFloat] = {}  # that the cluster has names for: {"A100": 1}
    retries: NonNegativeInt = 1  # on another node, if one is lost

    def require(self) -> None:
        """Also refuse what no node has: Ray would wait for one for ever."""
        super().require()
        ray = connect()
        asked = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory * 1e9, **self.resources}
        wanted = {name: amount for name, amount in asked.items() if amount}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(name, 0) >= amount for name, amount in wanted.items()) for node in nodes):
            have = {name: max(node.get(name, 0) for node in nodes) for name in wanted}
            raise UserError(
                f"no node of the Ray cluster has what a stage wants, {wanted}; the most that one has: {have}"
            )

    def run(self, stage: str, job: str, tell: Tell) -> bool:
        lost = import_module("ray.exceptions").RayError
        command = elsewhere.command(stage, job)
        for left in reversed(range(self.retries + 1)):
            try:
                return self.follow(command, tell)
            except lost as error:
                tell(f"Ray lost it: {str(error).splitlines()[0]}{' Once more.' if left else ''}\n".encode())
        return False

    def follow(self, command: list[str], tell: Tell) -> bool:
        ray = connect()
        task = ray.remote(worker).options(
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            memory=int(self.memory * 1e9),
            resources=self.resources,
            max_retries=0,  # Ray would expect the same output again
        )
        said: Any = task.remote(command)
        while not warm.STOPPED.is_set():
            ready, _ = ray.wait([said], timeout=1, fetch_local=False)
            if ready:
                chunk: Any = ray.get(next(said))
                if isinstance(chunk, int):
                    return chunk == 0
                tell(chunk)
        ray.cancel(said, force=True)
        return False


def connect() -> Any:
    """The library, in touch with the cluster."""
    try:
        ray, cloudpickle = import_module("ray"), import_module("ray.cloudpickle")
    except ImportError:
        raise UserError(
            "stages that run on ray need the extra `cluster`: pip install --no-deps -r infra/cluster.lock"
        ) from None

    with CONNECTING:
        if ray.is_initialized():
            return ray
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            if address != "auto":  # Ray itself would try for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), remote.PATIENCE).close()
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes have another version of this file, or none
        return ray


def worker(command: list[str]) -> Iterator[bytes | int]:
    """On the node: output as it comes, then the exit status."""
    import subprocess
    import sys

    home = os.environ.get("ORCHARD_HOME", ".")
    process = subprocess.Popen(
        [sys.executable, *command[1:]], cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout
    while chunk := os.read(process.stdout.fileno(), 65536):
        yield chunk
    yield process.wait()
