"""Bounds of a whole answer, its headers too: the client's own timeout is of every piece, so what drips never ends."""

import ssl
from collections.abc import Iterable
from time import monotonic
from typing import Any

import httpcore2


class Bounded(httpcore2.NetworkStream):
    """A connection that gives at most `limit` bytes in at most `seconds` since it was last written to."""

    def __init__(self, inner: httpcore2.NetworkStream, seconds: float, limit: int):
        self.inner, self.seconds, self.limit = inner, seconds, limit
        self.end, self.total = monotonic() + seconds, 0

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.end, self.total = monotonic() + self.seconds, 0
        self.inner.write(buffer, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if (left := self.end - monotonic()) <= 0:
            raise httpcore2.ReadTimeout("its answer has no end")
        piece = self.inner.read(max_bytes, min(left, timeout or left))
        if (total := self.total + len(piece)) > self.limit:
            raise httpcore2.ReadError(f"its answer is longer than {self.limit:,} bytes")
        self.total = total
        return piece

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return Bounded(self.inner.start_tls(ssl_context, server_hostname, timeout), self.seconds, self.limit)

    def close(self) -> None:
        self.inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)


class Backend(httpcore2.NetworkBackend):
    """Opens such connections."""

    def __init__(self, inner: httpcore2.NetworkBackend, seconds: float, limit: int):
        self.inner, self.seconds, self.limit = inner, seconds, limit

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        opened = self.inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return Bounded(opened, self.seconds, self.limit)
