"""`Response`: what a WSGI application says of its response, and the ASGI messages that makes.

It decides and sends nothing. The headers wait for the first byte of the body: until then the application can replace
them by those of an error page.

Which thread may touch what. The thread that runs the application, only.

Source: PEP 3333, "The start_response() Callable" and "Handling the Content-Length Header"; RFC 9110, 6.4.1.
"""

import re
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeAlias

__all__ = ("END", "ExcInfo", "Message", "Response", "plain_response")

Message: TypeAlias = dict[str, Any]
ExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
)

END: Message = {"type": "http.response.body"}

# Would end the header for the client, and begin another that the application never wrote.
_LINE_ENDS = re.compile(r"[\0\r\n]")
_WITHOUT_BODY = frozenset({204, 304})


class Response:
    """The state of one response.

    Attributes:
        to_head: whether the request was HEAD, so that there is no body.
        start: the message that starts the response; None before start_response was called.
        started: whether that message was handed out.
        content_length: bytes the body may have, if the headers say so.
        complete: whether all that may be sent was handed out, but for the end.
    """

    __slots__ = ("_sent", "complete", "content_length", "start", "started", "to_head")

    def __init__(self) -> None:
        self.to_head = False
        self._sent = 0
        self.start: Message | None = None
        self.started = self.complete = False
        self.content_length: int | None = None

    def begin(
        self, status: str, headers: Iterable[tuple[str, str]], exc_info: ExcInfo | None
    ) -> None:
        """Take status and headers, or others in their place; see `WsgiToAsgiInstance.start_response`."""
        if exc_info is not None:
            try:
                if self.started and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its traceback may lead to this frame: no circle
        elif self.start is not None:
            raise ValueError(
                "start_response was called a second time. To replace a response that failed, pass exc_info."
            )
        headers = list(headers)
        self.start = {
            "type": "http.response.start",
            "status": int(status.partition(" ")[0]),
            "headers": [_header(name, value) for name, value in headers],
        }
        self.content_length = _content_length(headers)

    def take(self, data: bytes) -> list[Message]:
        """Return the messages for the next piece of the body, cut where its Content-Length ends.

        Raises:
            TypeError: it is no bytes.
            RuntimeError: start_response was not called.
        """
        if not isinstance(data, bytes):
            raise TypeError(
                f"The WSGI application answered with {type(data).__name__}, not with bytes; encode text first."
            )
        if not data and not self.started:
            return []
        messages = self._ensure_started()
        if not self.complete:
            messages.append(
                {"type": "http.response.body", "body": self._cut(data), "more_body": True}
            )
        return messages

    def surplus_bytes(self, data: bytes) -> int:
        """Return how many bytes of the next piece, `data`, are beyond the Content-Length."""
        if self.content_length is None or self._has_no_body():
            return 0
        return max(0, len(data) - (self.content_length - self._sent))

    def end(self) -> list[Message]:
        """Return the messages that end the response.

        Raises:
            RuntimeError: start_response was not called, or the body is shorter than its Content-Length: the server then
                closes the connection, so that nobody takes the body for whole.
        """
        messages = self._ensure_started()
        if self.missing_bytes:
            raise RuntimeError(
                f"The WSGI application answered with {self._sent} bytes and a Content-Length of {self.content_length}."
            )
        return [*messages, END]

    @property
    def missing_bytes(self) -> int:
        """How many bytes of the Content-Length are still to come."""
        if self.complete or self.content_length is None or self._has_no_body():
            return 0
        return self.content_length - self._sent

    def _has_no_body(self) -> bool:
        return self.to_head or (self.start is not None and self.start["status"] in _WITHOUT_BODY)

    def _ensure_started(self) -> list[Message]:
        if self.started:
            return []
        if self.start is None:
            raise RuntimeError("The WSGI application answered without calling start_response.")
        self.started = True
        self.complete = self._has_no_body()
        return [self.start]

    def _cut(self, data: bytes) -> bytes:
        if self.content_length is not None:
            data = data[: self.content_length - self._sent]
        self._sent += len(data)
        self.complete = self._sent == self.content_length
        return data


def plain_response(status: int, text: bytes, *headers: tuple[bytes, bytes]) -> list[Message]:
    """Return the messages of a whole response in plain text."""
    all_headers = [(b"content-type", b"text/plain"), *headers]
    return [
        {"type": "http.response.start", "status": status, "headers": all_headers},
        {"type": "http.response.body", "body": text},
    ]


def _header(name: str, value: str) -> tuple[bytes, bytes]:
    if _LINE_ENDS.search(name) or _LINE_ENDS.search(value):
        raise ValueError(
            f"The response header {name!r} has a line end or a null character in it: {value!r}."
        )
    return name.lower().encode("latin-1"), value.encode("latin-1")


def _content_length(headers: Iterable[tuple[str, str]]) -> int | None:
    length = None
    for name, value in headers:
        if name.lower() == "content-length":
            length = int(value)
            if length < 0:
                raise ValueError(f"A Content-Length is a number of bytes, not {value!r}.")
    return length
