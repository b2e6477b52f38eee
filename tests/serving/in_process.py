"""An `HTTPServer` in a thread of this process, and raw requests to it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from django_asyncbridge.serving.address import Address, listen
from django_asyncbridge.serving.http import HTTPServer
from django_asyncbridge.serving.options import ServingOptions
from tests.serving.children import LIMIT_SECONDS


class Served:
    """A server that runs, and the way to it."""

    def __init__(self, server: HTTPServer, address: Any, family: int) -> None:
        self.server = server
        self._address = address
        self._family = family

    def connect(self) -> socket.socket:
        """Return a connection; the caller closes it."""
        client = socket.socket(self._family, socket.SOCK_STREAM)
        client.settimeout(LIMIT_SECONDS)
        client.connect(self._address)
        return client

    def ask(self, *requests: bytes) -> bytes:
        """Return everything that comes back on one connection, until the server closes it."""
        with self.connect() as client:
            for request in requests:
                client.sendall(request)
            return everything(client)


def everything(client: socket.socket) -> bytes:
    """Return what comes until the server closes the connection; it may do that before it has read everything."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def get(path: str, *headers: str, connection: str = "close") -> bytes:
    """Return the bytes of a request."""
    lines = [f"GET {path} HTTP/1.1", "host: localhost", f"connection: {connection}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@contextlib.contextmanager
def serving(
    application: Any,
    limit: int | None = None,
    *,
    listener: socket.socket | None = None,
    server_class: type[HTTPServer] = HTTPServer,
    **options: Any,
) -> Iterator[Served]:
    """Serve an application while the block runs; at its end the server has ended, in order."""
    listener = listener or listen(Address(port=0))
    address, family = listener.getsockname(), listener.family
    how = ServingOptions(**options)
    started = threading.Event()
    server = server_class(
        application, limit, listener=listener, options=how, on_started=started.set
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(LIMIT_SECONDS)
        yield Served(server, address, family)
    finally:
        server.stop()
        thread.join(LIMIT_SECONDS)
        assert not thread.is_alive()
