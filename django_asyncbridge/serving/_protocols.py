"""What uvicorn's protocols do otherwise here: a bound on the head of a request, and an end of WebSockets that never fails.

`limited`: httptools, which parses for uvicorn where it is installed, takes a head of any size into memory; h11 has a bound, but uvicorn answers
what is beyond it as any other garbage. Both answer 431 here, and say so in the log. And clients of HTTP/1.0 get no chunks, as with h11.

`forgiving`: uvicorn closes each WebSocket with 1012 when it stops, and raises, in the middle of that, for one that its client is
just closing: the others then stay as they are, and the stop fails.

Which thread may touch what. A protocol belongs to its connection, on the loop's thread.

Source: RFC 6585, section 5 (431); RFC 9112, section 6.1 (chunks).
"""

import contextlib
import logging
import sys
from typing import Any

__all__ = ("MAX_HEAD_BYTES", "forgiving", "is_too_large", "limited")

logger = logging.getLogger("django_asyncbridge.serving")

# What h11 has as its own bound by default; four times what nginx takes, with its defaults, from one client.
MAX_HEAD_BYTES = 64 * 1024

_TEXT = b"The headers of the request are too large.\n"
_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\n"
    b"content-length: %d\r\n"
    b"connection: close\r\n"
    b"\r\n" % len(_TEXT)
) + _TEXT


# Not measured: a client that is still sending has read the answer by then, if it means to.
_LINGER_SECONDS = 2.0


class _TooLargeError(Exception):
    """Raised through the parser, which then takes nothing more."""


class _AnyLength(int):
    """The length of a body that is as long as it turns out to be: never exceeded, and reached at any time."""

    def __lt__(self, other: object) -> bool:
        """Tell that nothing is longer."""
        return False

    def __sub__(self, other: object) -> "_AnyLength":
        """Return what is left: the same."""
        return self

    def __ne__(self, other: object) -> bool:
        """Tell that nothing is missing."""
        return False


def is_too_large(error: BaseException | None) -> bool:
    """Tell whether a parser has raised this because a head is too large."""
    if isinstance(getattr(error, "__context__", None), _TooLargeError):
        return True
    # As h11 says it.
    return getattr(error, "error_status_hint", None) == 431


def limited(protocol: Any) -> Any:
    """Return a protocol of uvicorn, made with h11 or httptools, that answers a head that is too large with 431."""
    # Only httptools calls the protocol for each part of a message; h11 counts by itself.
    return _counting(protocol) if hasattr(protocol, "on_message_begin") else _answering(protocol)


def _answering(protocol: Any) -> Any:
    """Return a protocol that tells a head that is too large from other garbage."""

    class Answering(protocol):  # type: ignore[misc]
        """A protocol with two answers to what cannot be parsed."""

        _refused = False

        def data_received(self, data: bytes) -> None:
            """Take bytes from the client; after the refusal they count for nothing."""
            if not self._refused:
                super().data_received(data)

        def send_400_response(self, msg: str) -> None:
            """Answer what the parser has just refused, in the handler of its exception."""
            if is_too_large(sys.exception()):
                self.refuse_head()
            else:
                super().send_400_response(msg)

        def refuse_head(self) -> None:
            """Answer 431, and close the connection when the client has had time to read that.

            Closing at once would reset it, if the client is still sending, and the answer would be lost.
            """
            self._refused = True
            logger.warning(
                "A request of %s was answered 431: its headers have more than %d bytes",
                self.client[0] if self.client else "a Unix socket",
                MAX_HEAD_BYTES,
            )
            self.transport.write(_ANSWER)
            if self.transport.can_write_eof():  # pragma: no branch  # not with TLS
                self.transport.write_eof()
            self.loop.call_later(_LINGER_SECONDS, self.transport.close)

    return Answering


def _counting(protocol: Any) -> Any:
    """Return a protocol that also counts the bytes of a head: those of headers that have ended, and what came for one that has not."""

    class Counting(_answering(protocol)):  # type: ignore[misc]
        """A protocol whose parser has no bound."""

        _in_head = True
        _received_bytes = 0
        _fields_bytes = 0

        def data_received(self, data: bytes) -> None:
            """Take bytes from the client."""
            if self._in_head:
                self._received_bytes += len(data)
            super().data_received(data)
            endless = self._in_head and self._received_bytes > MAX_HEAD_BYTES
            if endless and not (self._refused or self.transport.is_closing()):
                self.refuse_head()

        def on_message_begin(self) -> None:
            """Begin a head."""
            self._fields_bytes = 0
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            """Count a header."""
            self._fields_bytes += len(name) + len(value)
            if self._fields_bytes > MAX_HEAD_BYTES:
                raise _TooLargeError
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            """End a head."""
            self._in_head = False
            super().on_headers_complete()
            if self.scope.get("http_version") == "1.0" and self.cycle is not None:
                # uvicorn would send chunks, which such a client takes for the body. The end of the connection is that of the body.
                self.cycle.chunked_encoding = False
                self.cycle.expected_content_length = _AnyLength()

        def on_message_complete(self) -> None:
            """End a message; what follows is the head of the next."""
            self._in_head, self._received_bytes = True, 0
            super().on_message_complete()

    return Counting


def forgiving(protocol: Any) -> Any:
    """Return a WebSocket protocol of uvicorn whose connections can be told to end at any moment."""

    class Forgiving(protocol):  # type: ignore[misc]
        """A protocol whose shutdown does not raise."""

        def shutdown(self) -> None:
            """Close the WebSocket with 1012, unless it is about to end."""
            # Each implementation has an exception of its own for a connection in the wrong state.
            with contextlib.suppress(Exception):
                super().shutdown()
                return
            self.transport.close()

    return Forgiving
