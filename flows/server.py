"""Prefect's API for the length of one flow, started before anything slow is imported.

Prefect starts such a server by itself, but only when the flow is called, and leaves it behind when the flow is killed.
This one listens at once (a request waits until the server is up) and ends when the pipe from its flow closes.
"""

import gc
import os
import socket
import subprocess
import sys
from threading import Thread

from stages.lib.frame import tracking
from stages.lib.frame.errors import UserError

ADDRESS, USUAL = "PREFECT_API_URL", "http://127.0.0.1:4200/api"  # environment variable; where `make ui` has it
SETTINGS = {
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",  # whole seconds: less is 0, and spins a core
} | {
    f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false"
    for name in (
        *("CANCELLATION_CLEANUP", "CLEANUP_RECONCILER", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS"),
        *("REPOSSESSOR", "SCHEDULER", "TRIGGERS"),
    )
}


own_addresses: set[str] = set()  # of the servers that this process has started


def start() -> None:
    """Point PREFECT_API_URL at a server: the one that is set, the one of `prefect server start`, or one of our own."""
    if os.environ.get(ADDRESS):
        return
    with socket.socket() as probe:
        taken = probe.connect_ex(("127.0.0.1", 4200)) == 0
    try:
        if taken:
            tracking.require_server(ADDRESS, USUAL)
            os.environ[ADDRESS] = USUAL
            return
    except UserError:
        pass  # something else has that port
    own()


def require() -> str:
    """The address of the server, for people; refused where it is another's and does not answer."""
    address = os.environ[ADDRESS]
    if address in own_addresses:
        return f"{address} (its own, for this flow)"
    tracking.require_server(ADDRESS, address)
    return address


def own() -> subprocess.Popen:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        os.environ[ADDRESS] = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        own_addresses.add(os.environ[ADDRESS])
        command = [sys.executable, "-m", "flows.server", str(listener.fileno())]
        environment = os.environ | SETTINGS
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True
        )


def serve(descriptor: int) -> None:
    gc.disable()  # a quarter of the start goes into collecting garbage that import does not make
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="critical", timeout_graceful_shutdown=3))

    def stop_with_the_flow() -> None:
        sys.stdin.read()
        server.should_exit = True

    gc.freeze()
    gc.enable()
    Thread(target=stop_with_the_flow, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(int(sys.argv[1]))
