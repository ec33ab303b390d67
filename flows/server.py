"""Prefect's API for the length of one flow, started before anything slow is imported; for `make ui`, its pages too.

Prefect starts such a server by itself, but only when the flow is called, and leaves it behind when the flow is killed.
This one listens at once (a request waits until the server is up) and ends when the pipe from its flow closes. Prefect's
own answers whoever asks: a page in somebody's browser could plant a deployment, whose commands the next worker runs.
This one refuses pages of other sites, under whatever name they know it, and who does not know its password: a file in
Prefect's folder that only its owner can read.
"""

import errno
import gc
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from stages.lib.frame import sqlite, tracking

HOST, USUAL_PORT = "127.0.0.1", 4200
ADDRESS, USUAL = "PREFECT_API_URL", f"http://{HOST}:{USUAL_PORT}/api"  # environment variable; where `make ui` has it
RESTARTS, SILENCE = 5, 60  # of a server that has ended; seconds after which one of others is given up
PULSE = 5  # seconds between looks at our own
GRACE = 10  # seconds that a server may take to end
CLIENT, SERVER = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"  # environment variables
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
    """Point PREFECT_API_URL at a server: the one that is set, the one of `make ui`, or one of our own."""
    if not os.environ.get(ADDRESS) and not is_prefect(USUAL):
        own()
    address = os.environ.setdefault(ADDRESS, USUAL)
    if address.startswith(f"http://{HOST}:"):  # of `make ui`, or of a flow that started this process
        os.environ.setdefault(CLIENT, password())


def is_prefect(address: str) -> bool:
    """Whether it says so: that port may be another program's, or of one that answers nobody any more."""
    from http.client import HTTPException
    from urllib.request import urlopen

    with suppress(OSError, HTTPException), urlopen(f"{address}/health", timeout=tracking.PATIENCE) as answer:
        return answer.read(5) == b"true"
    return False


def require() -> str:
    """The address of the server, for people; refused where it is another's and does not answer."""
    address = os.environ[ADDRESS]
    if address in own_addresses:
        return f"{address} (its own, for this flow)"
    tracking.require_server(ADDRESS, address)
    return address


def own(port: int = 0) -> subprocess.Popen:
    """A server of this process's own. Should something end it, or should it answer nobody any more (seen once, on idle
    cores), another one listens to the same socket: what the flow asks meanwhile waits, or is asked once more by
    Prefect's client."""
    listener = socket.create_server((HOST, port), backlog=128)
    os.environ[ADDRESS] = f"http://{HOST}:{listener.getsockname()[1]}/api"
    own_addresses.add(os.environ[ADDRESS])
    first = process(listener, SETTINGS)
    Thread(target=keep, args=(listener, first, os.environ[ADDRESS]), daemon=True).start()
    return first


def keep(listener: socket.socket, running: subprocess.Popen, address: str) -> None:
    with listener:
        for _ in range(RESTARTS):
            outlast(running, address)
            assert running.stdin
            if running.stdin.closed:
                return
            print("Prefect's server of this flow has ended: begun anew", file=sys.stderr)
            running = process(listener, SETTINGS)


def outlast(running: subprocess.Popen, address: str) -> None:
    """Wait until it has ended. One that has answered and falls silent is killed, before who uses it gives it up."""
    answered = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            running.wait(PULSE)
            return
        if not tracking.why_silent(address):
            answered = time.monotonic()
        elif answered and time.monotonic() - answered > SILENCE / 2:
            running.kill()


@contextmanager
def watched(lost: Callable[[str], None]) -> Iterator[None]:
    """Call `lost` with the reason once the server of others, which this flow uses, answers no more: the flow would wait
    for it without end. The place of `make ui`'s, which somebody has closed, is taken: the database is the same."""
    over = Event()

    def watch() -> None:
        address, answered = os.environ[ADDRESS], time.monotonic()
        while address not in own_addresses and not over.wait(1):
            if not (reason := tracking.why_silent(address)):
                answered = time.monotonic()
            elif address == USUAL and is_free():
                own(USUAL_PORT)
            elif (silent := time.monotonic() - answered) > SILENCE:
                return lost(f"{ADDRESS} is {address}, and for {silent:.0f} s no server has answered there ({reason})")
        return None

    Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def is_free() -> bool:
    """Whether nobody listens where `make ui` has its server."""
    with socket.socket() as ours:
        return ours.connect_ex((HOST, USUAL_PORT)) == errno.ECONNREFUSED


def process(listener: socket.socket, settings: dict[str, str]) -> subprocess.Popen:
    """A server that lives until its standard input closes."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.server", str(listener.fileno())],
        env=os.environ | settings | {SERVER: password()},
        stdin=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        start_new_session=True,
    )


def password() -> str:
    """Of this user's servers, NAME:SECRET; made when it is first needed."""
    place = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect") / "orchard.password"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        made = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"orchard:{secrets.token_urlsafe(24)}")
        with suppress(FileExistsError):  # of two processes the first one's
            os.link(made, place)
        made.unlink()
    return place.read_text()


def serve(descriptor: int) -> None:
    gc.disable()  # a quarter of the start goes into collecting garbage that import does not make
    import uvicorn
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    keep_whole()
    app = create_app()
    app.add_middleware(OwnPages)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=3))

    def stop_with_the_flow() -> None:
        sys.stdin.read()
        server.should_exit = True
        time.sleep(GRACE)  # after thousands of tasks Prefect's services once waited for one another without end
        os._exit(1)

    gc.freeze()
    gc.enable()
    Thread(target=stop_with_the_flow, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=descriptor)])


def keep_whole() -> None:
    """A damaged database is kept aside: with it no server starts."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    place = sqlite.place(str(PREFECT_API_DATABASE_CONNECTION_URL.value()))
    if place and place.exists() and not sqlite.whole(place, "alembic_version"):
        aside = sqlite.keep_aside(place)
        print(f"{place}, Prefect's, is damaged: kept as {aside}, and begun anew without earlier runs", file=sys.stderr)


class OwnPages:
    """Refuses what a page of another site asks for; a browser says whose page it is. ASGI."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        origin = headers.get(b"origin")
        if origin and origin.partition(b"://")[2] != headers.get(b"host"):
            from starlette.responses import PlainTextResponse

            return await PlainTextResponse("this is another site's page", 403)(scope, receive, send)
        return await self.app(scope, receive, send)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
