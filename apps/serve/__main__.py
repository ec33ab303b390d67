"""An OpenAI-compatible server with a page to chat on: python -m apps.serve [--model MODEL]. Ctrl-C ends.

MODEL is what answers where a request names none, said as in apps.chat; every GGUF export of this checkout can be
named. With the environment variable ORCHARD_API_KEY set, every request needs it as `Authorization: Bearer KEY`, and
only then may the server listen on another host than the loopback.
"""

import logging
import os
import socket
from contextlib import suppress
from ipaddress import ip_address

import stages  # noqa: F401  (switches network and telemetry off before anything else is imported)
from apps.parts import catalog
from stages.lib.frame import energy
from stages.lib.frame.errors import UserError, command

KEY = "ORCHARD_API_KEY"  # environment variable
PATIENCE = 2  # seconds that an answer may go on after Ctrl-C


def main(*, model: str | None = None, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Without --model it is the one that ships, by the gates in params.yaml. Port 0: any that is free."""
    with suppress(KeyboardInterrupt):
        run(model or catalog.name(catalog.shipped().partition("/")[2]), host, port)


def run(default: str, host: str, port: int) -> None:
    key = os.environ.get(KEY)
    if not key and not is_loopback(host):
        raise UserError(f"--host {host} lets other machines in: set {KEY} to a secret first, or listen on 127.0.0.1")
    with listening(host, port) as listener:
        import uvicorn

        from apps.serve.models import Models
        from apps.serve.routes import application

        models = Models([default, *catalog.exports()])
        models.load(default)
        with energy.meter():  # its first start takes half a second, which no answer shall wait
            pass
        app = application(models, key, [host, "localhost", "127.0.0.1", "[::1]"] if is_loopback(host) else ["*"])
        address = f"[{host}]" if ":" in host else host
        print(f"http://{address}:{listener.getsockname()[1]} (Ctrl-C ends)", flush=True)
        logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of everybody who goes away in the middle
        settings = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=PATIENCE)
        uvicorn.Server(settings).run(sockets=[listener])


def is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


def listening(host: str, port: int) -> socket.socket:
    """Before a model is loaded, for the port may be taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"can't listen on {host}, port {port}: {reason}; --port names another") from error


if __name__ == "__main__":
    command(main)
