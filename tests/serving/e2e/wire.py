"""HTTP/1.1 on a socket: bytes out, bytes in, and a reader of responses that takes nothing for granted.

A connection belongs to one thread.
"""

import contextlib
import json
import socket
import ssl
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

LIMIT_SECONDS = 30

Address = tuple[str, int] | str


@dataclass(frozen=True)
class Response:
    """What came back."""

    version: bytes
    status: int
    headers: dict[bytes, bytes]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


class CutError(Exception):
    """The server closed, or reset, a connection on which something was still to come.

    Attributes:
        received: what came of the response before that.
        reset: whether it was reset; otherwise it was closed in order.
    """

    def __init__(self, received: bytes, *, reset: bool) -> None:
        super().__init__(f"{'reset' if reset else 'closed'} after {received[-200:]!r}")
        self.received = received
        self.reset = reset


class Connection:
    """A connection to a server."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None = None) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(LIMIT_SECONDS)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(address, timeout=LIMIT_SECONDS)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        self._buffer = b""
        self._response = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Disappear, so that whatever the server sends from now on is an error to it."""
        linger_not = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_not)
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, target: str = "/", *headers: str, version: str = "1.1") -> None:
        """Send a request without a body."""
        self.send(request("GET", target, *headers, version=version))

    def ask(self, target: str = "/", *headers: str) -> Response:
        """Send a request without a body, and return the response."""
        self.get(target, *headers)
        return self.response()

    # --- Reading -----------------------------------------------------------------

    def response(self, method: str = "GET") -> Response:
        """Read a whole response to a request of that method."""
        head = self.head()
        body = b"" if method == "HEAD" else self._body(head)
        return Response(head.version, head.status, head.headers, body)

    def head(self) -> Response:
        """Read a response up to its body."""
        self._response = b""
        version, status = self._line().split(b" ", 2)[:2]
        headers: dict[bytes, bytes] = {}
        while line := self._line():
            name, colon, value = line.partition(b":")
            assert colon, line
            headers[name.lower()] = value.strip()
        return Response(version, int(status), headers)

    def read(self, count: int) -> bytes:
        """Read so many bytes."""
        while len(self._buffer) < count:
            self._more()
        data, self._buffer = self._buffer[:count], self._buffer[count:]
        return data

    def rest(self) -> bytes:
        """Read until the server closes."""
        with contextlib.suppress(CutError):
            while True:
                self._more()
        data, self._buffer = self._buffer, b""
        return data

    def chunk(self) -> bytes:
        """Read one chunk; the last is empty."""
        size = int(self._line(), 16)
        data = self.read(size)
        assert self.read(2) == b"\r\n"
        return data

    def _body(self, head: Response) -> bytes:
        if b"content-length" in head.headers:
            return self.read(int(head.headers[b"content-length"]))
        if head.headers.get(b"transfer-encoding") == b"chunked":
            return b"".join(iter(self.chunk, b""))
        return self.rest()

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _more(self) -> None:
        try:
            piece = self.socket.recv(1 << 18)
        except ConnectionError as error:
            raise CutError(self._response, reset=True) from error
        if not piece:
            raise CutError(self._response, reset=False)
        self._response += piece[:1000]
        self._buffer += piece


def request(method: str, target: str, *headers: str, version: str = "1.1") -> bytes:
    """Return the head of a request."""
    lines = [f"{method} {target} HTTP/{version}", "host: localhost", *headers, "", ""]
    return "\r\n".join(lines).encode()
