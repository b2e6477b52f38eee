"""Serve a WSGI application under an ASGI server.

The request body is read completely on the event loop first. Then the WSGI application runs in a thread (the
home thread of the caller, see `sync_to_async`), where each piece of its answer is passed to `send` and waited for.
The translation of the request is a set of pure functions at the end of this file.
"""

import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping
from tempfile import SpooledTemporaryFile
from types import TracebackType
from typing import IO, Any, TypeAlias

from django_asyncbridge.bridge.sync import AsyncToSync, sync_to_async

__all__ = ("WsgiToAsgi", "WsgiToAsgiInstance")

# As wide as what callers pass: plain dicts and the typed ones of bridge.typing alike.
_Scope: TypeAlias = Mapping[str, Any]
_Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
_Send: TypeAlias = Callable[[Any], Awaitable[None]]
_ExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
)

# Request bodies up to this size stay in memory, larger ones go to a temporary file. Not measured.
_BODY_IN_MEMORY_BYTES = 65536


class WsgiToAsgi:
    """Make an ASGI application of a WSGI application.

    One object serves all requests; each gets a `WsgiToAsgiInstance` of its own. It belongs to no event
    loop or thread.

    Args:
        wsgi_application: Called with the environ and start_response, once per request.
        duplicate_header_limit: How often a header may be repeated before the request is answered with
            400, since joining many is costly. 0 or None: as often as it likes.

    Source: PEP 3333; ASGI specification, "HTTP & WebSocket ASGI Message Format" and "WSGI Compatibility".
    """

    def __init__(
        self, wsgi_application: Callable[..., Iterable[bytes]], duplicate_header_limit: int = 100
    ) -> None:
        self.wsgi_application = wsgi_application
        self.duplicate_header_limit = duplicate_header_limit

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one scope; see `WsgiToAsgiInstance`."""
        instance = WsgiToAsgiInstance(self.wsgi_application, self.duplicate_header_limit)
        await instance(scope, receive, send)


class WsgiToAsgiInstance:
    """One request on its way through a WSGI application.

    The WSGI application runs in a thread, in a copy of the context of the ASGI task, and `send` runs on
    the loop of that task. A cancelled task does not stop the thread: it goes as `sync_to_async` says.

    Args:
        wsgi_application: As for `WsgiToAsgi`.
        duplicate_header_limit: As for `WsgiToAsgi`.

    Attributes:
        scope: The scope of the request, once called.
        sync_send: `send` for the thread: returns when the server has taken the message.
        response_start: The message that starts the response, once start_response was called.
        response_started: Whether it has been sent.
        response_content_length: Bytes the response may have, if its headers say so.

    Source: PEP 3333.
    """

    scope: _Scope
    sync_send: Callable[[Any], None]
    response_start: dict[str, Any]

    def __init__(
        self, wsgi_application: Callable[..., Iterable[bytes]], duplicate_header_limit: int = 100
    ) -> None:
        self.wsgi_application = wsgi_application
        self.duplicate_header_limit = duplicate_header_limit
        self.response_started = False
        self.response_content_length: int | None = None
        self._bytes_sent = 0

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one scope.

        An HTTP request goes to the WSGI application. A lifespan gets its startup and shutdown confirmed,
        for there is nothing to do; a WebSocket is refused. A client that leaves while its request is
        read ends the call quietly, without the WSGI application being called.

        Args:
            scope: The ASGI scope.
            receive: Awaited for the request, on the caller's loop.
            send: Awaited with each message of the response, on the caller's loop.

        Raises:
            ValueError: The scope, or a message while the request is read, is of a type unknown here.
            Exception: Whatever the WSGI application raised.
        """
        if scope["type"] == "http":
            await self._answer_request(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _confirm_lifespan(receive, send)
        elif scope["type"] == "websocket":
            await _refuse_websocket(receive, send)
        else:
            raise ValueError(
                f"A WSGI application is called with an HTTP scope, not with {scope['type']!r}."
            )

    def build_environ(self, scope: _Scope, body: IO[bytes]) -> dict[str, Any]:
        """Return the WSGI environ for a request. May be overridden; runs in the thread.

        Args:
            scope: An HTTP scope.
            body: The request body, at its start.

        Returns:
            A new dict.

        Raises:
            ValueError: A header is repeated more often than `duplicate_header_limit`.

        Source: PEP 3333, "environ Variables".
        """
        return {
            **_request_environ(scope),
            **_address_environ(scope),
            **_wsgi_environ(scope, body),
            **_header_environ(scope.get("headers", ()), self.duplicate_header_limit),
        }

    def start_response(
        self,
        status: str,
        response_headers: list[tuple[str, str]],
        exc_info: _ExcInfo | None = None,
    ) -> Callable[[bytes], object]:
        """Take the status and headers of the response, as WSGI has it. Nothing is sent yet.

        They are sent with the first bytes of the body, so that until then a call with `exc_info` can
        replace them by those of an error page.

        Args:
            status: Status code, with or without a reason: ``"204 No Content"`` or ``"204"``.
            response_headers: Pairs of name and value, of characters up to U+00FF.
            exc_info: What `sys.exc_info` returned, when an error page is started.

        Returns:
            WSGI's ``write``: sends a piece of the body before those that are iterated over.

        Raises:
            ValueError: It was called before and `exc_info` is missing, or the status is no number.
            BaseException: The one in `exc_info`, because the headers are sent already.

        Source: PEP 3333, "The start_response() Callable".
        """
        if exc_info is not None:
            try:
                if self.response_started and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its traceback may lead to this frame: no circle
        elif hasattr(self, "response_start"):
            raise ValueError(
                "start_response was called a second time. To replace a response that failed, pass exc_info."
            )
        self.response_start = _response_start(status, response_headers)
        self.response_content_length = _content_length(response_headers)
        return self._send_body

    @sync_to_async
    def run_wsgi_app(self, body: IO[bytes]) -> None:
        """Call the WSGI application and send its answer. Awaited on the loop, runs in a thread.

        The application's iterable is closed in the same thread, however the answer ends. Bytes beyond
        its Content-Length are not sent, and it is not iterated further.

        Args:
            body: The request body, at its start.

        Raises:
            RuntimeError: The application has not called start_response.
            Exception: Whatever the application or `send` raised.

        Source: PEP 3333, "Specification Details" and "Handling the Content-Length Header".
        """
        try:
            environ = self.build_environ(self.scope, body)
        except _TooManyHeadersError:
            self._refuse_headers()
            return
        output = self.wsgi_application(environ, self.start_response)
        try:
            for chunk in output:
                self._send_body(chunk)
                if self._is_complete():
                    break
            self._ensure_started()
            self.sync_send({"type": "http.response.body"})
        finally:
            close = getattr(output, "close", None)
            if close is not None:
                close()

    async def _answer_request(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        self.scope = scope
        with SpooledTemporaryFile(max_size=_BODY_IN_MEMORY_BYTES) as body:
            if await _read_body(receive, body):
                self.sync_send = AsyncToSync(send)
                await self.run_wsgi_app(body)

    def _send_body(self, data: bytes) -> None:
        if not data and not self.response_started:
            return  # the headers wait for the first byte: until then the response can be replaced
        self._ensure_started()
        if self.response_content_length is not None:
            data = data[: self.response_content_length - self._bytes_sent]
        self._bytes_sent += len(data)
        self.sync_send({"type": "http.response.body", "body": data, "more_body": True})

    def _ensure_started(self) -> None:
        if self.response_started:
            return
        if not hasattr(self, "response_start"):
            raise RuntimeError("The WSGI application answered without calling start_response.")
        self.response_started = True
        self.sync_send(self.response_start)

    def _is_complete(self) -> bool:
        return self.response_started and self._bytes_sent == self.response_content_length

    def _refuse_headers(self) -> None:
        headers = [(b"content-type", b"text/plain")]
        self.sync_send({"type": "http.response.start", "status": 400, "headers": headers})
        self.sync_send(
            {"type": "http.response.body", "body": b"Bad Request: Too many duplicate headers"}
        )


class _TooManyHeadersError(ValueError):
    """A header is repeated more often than allowed."""


async def _read_body(receive: _Receive, body: IO[bytes]) -> bool:
    """Read the request body into a file and go to its start; False if the client left before."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        if message["type"] != "http.request":
            raise ValueError(f"Expected a message of type http.request, not {message['type']!r}.")
        body.write(message.get("body", b""))
        if not message.get("more_body"):
            body.seek(0)
            return True


async def _confirm_lifespan(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _refuse_websocket(receive: _Receive, send: _Send) -> None:
    await receive()  # the server offers the connection with this message; only then is it refused
    await send({"type": "websocket.close", "code": 1000})


def _request_environ(scope: _Scope) -> dict[str, Any]:
    script_name, path_info = _split_path(scope.get("root_path", ""), scope["path"])
    return {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": _native(script_name),
        "PATH_INFO": _native(path_info),
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
    }


def _split_path(root_path: str, path: str) -> tuple[str, str]:
    """Divide a path into the application's own root and the rest, only at a slash.

    ASGI's path includes the root path. A path outside the root is taken whole, as some servers send it.
    """
    root = root_path.rstrip("/")
    if path == root or path.startswith(f"{root}/"):
        return root, path[len(root) :]
    return root, path


def _native(text: str) -> str:
    """Return a WSGI string: UTF-8 bytes, each as one character. Source: PEP 3333, "Unicode Issues"."""
    return text.encode("utf-8").decode("latin-1")


def _address_environ(scope: _Scope) -> dict[str, Any]:
    host, port = scope.get("server") or ("localhost", 80)  # WSGI must have them, ASGI need not
    environ = {"SERVER_NAME": host, "SERVER_PORT": str(port or 0)}
    client = scope.get("client")
    if client is not None:
        environ["REMOTE_ADDR"] = client[0]
    return environ


def _wsgi_environ(scope: _Scope, body: IO[bytes]) -> dict[str, Any]:
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": body,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }


def _header_environ(headers: Iterable[tuple[bytes, bytes]], limit: int) -> dict[str, str]:
    """Translate request headers, those of the same name joined in their order."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
        # "-" becomes "_", so with an underscore of its own a client's header would be taken for
        # another that a proxy set. Web servers drop these for the same reason.
        if b"_" in name:
            continue
        key = _environ_name(name.decode("latin-1"))
        same = values.setdefault(key, [])
        if limit and len(same) >= limit:
            raise _TooManyHeadersError(f"More than {limit} headers for {key}.")
        same.append(value.decode("latin-1"))
    return {key: _separator(key).join(same) for key, same in values.items()}


def _environ_name(header: str) -> str:
    name = header.upper().replace("-", "_")
    return name if name in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{name}"


def _separator(key: str) -> str:
    # HTTP/2 and HTTP/3 clients may split a cookie header (RFC 9113, 8.2.3); all others are lists.
    return "; " if key == "HTTP_COOKIE" else ","


def _response_start(status: str, response_headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    return {
        "type": "http.response.start",
        "status": int(status.partition(" ")[0]),
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in response_headers
        ],
    }


def _content_length(response_headers: Iterable[tuple[str, str]]) -> int | None:
    length = None
    for name, value in response_headers:
        if name.lower() == "content-length":
            length = int(value)
    return length
