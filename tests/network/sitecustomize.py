"""On PYTHONPATH: every Python process notes in $NETWORK_LOG which hosts outside this machine it turns to.

The log also has a line for each process that was watched, so that an empty test can be told from a quiet program.
"""

import ipaddress
import os
import socket
import sys
from typing import Any

SENDING = ("socket.connect", "socket.sendto", "socket.sendmsg")  # arguments: socket, address


def host_of(event: str, arguments: tuple[Any, ...]) -> str | None:
    """Whom a socket is about to speak to, or whose address is looked up; None if nobody's."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in SENDING and arguments[1] and arguments[0].family in (socket.AF_INET, socket.AF_INET6):
        host = arguments[1][0]
    else:
        return None
    return host.decode() if isinstance(host, bytes) else host


def local(host: str | None) -> bool:
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def note(line: str) -> None:
    with open(os.environ["NETWORK_LOG"], "a") as log:  # noqa: PTH123  (pathlib is slow to import, and this runs always)
        log.write(f"{line}\n")


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith("socket.") and not local(host := host_of(event, arguments)):
        note(f"OUTSIDE {event} {host} by {' '.join(sys.orig_argv)[:200]}")


if "NETWORK_LOG" in os.environ:
    note(f"watched {' '.join(sys.orig_argv)[:200]}")
    sys.addaudithook(watch)
