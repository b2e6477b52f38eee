"""Serve a WSGI application under an ASGI server.

Theory of operation. Each request runs in a thread of its own, lent to it until the application has ended
(`ThreadSensitiveContext`); where the call chain has a home thread already, it runs there. `_wsgi_environ` translates the
request; `_wsgi_inbox` receives the body, some way ahead of the application that reads it, and hears when the client leaves;
`_wsgi_response` decides which messages an answer makes; `_wsgi_answer` calls the application and sends them.

Which thread may touch what. An instance serves one request. `__call__` and what it awaits belong to the thread of the
loop; `run_wsgi_app`, `build_environ`, `start_response` and `sync_send` to the thread of the application.

Source: PEP 3333; ASGI specification, "HTTP & WebSocket ASGI Message Format" and "WSGI Compatibility".
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, TypeAlias

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._wsgi_answer import Answer, Send
from django_asyncbridge.bridge._wsgi_environ import TooManyHeadersError, environ_of
from django_asyncbridge.bridge._wsgi_inbox import Receive
from django_asyncbridge.bridge._wsgi_response import (
    ExcInfo,
    Message,
    Response,
    plain_response,
)
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, WorkersBusy, sync_to_async

__all__ = ("WsgiToAsgi", "WsgiToAsgiInstance")

# As wide as what callers pass: plain dicts and the typed ones of bridge.typing alike.
_Scope: TypeAlias = Mapping[str, Any]
_Application: TypeAlias = Callable[..., Iterable[bytes]]

# Four times what uvicorn keeps itself before it makes the client wait: a 2 MB body takes half as long as with 64 KB.
_READ_AHEAD_BYTES = 262144
# When to begin to listen for the client's leaving. A task for that costs as much as a whole small request, and can be of use
# only to one that takes its time. Not measured.
_LISTEN_AFTER_SECONDS = 0.1

logger = logging.getLogger("django_asyncbridge.bridge.wsgi")


class WsgiToAsgi:
    """Make an ASGI application of a WSGI application.

    One object serves all requests, side by side; each gets a `WsgiToAsgiInstance` and a thread of its own. It belongs to no
    event loop or thread.

    Args:
        wsgi_application: Called with the environ and start_response, once per request, in several threads at once.
        duplicate_header_limit: How often a header may be repeated before the request is answered with
            400, since joining many is costly. 0 or None: as often as it likes.
        read_ahead_bytes: How much of a request body may be in memory before the application has read it. The application is
            called when the body is complete, when so much of it is there, or after a second. The rest comes
            as it is read, which only sync code can wait for: raise the limit for applications that read ``wsgi.input`` in async
            views, and for those that take no body without a CONTENT_LENGTH, as Django. 0: call it with the first piece.

    Source: PEP 3333; ASGI specification, "HTTP & WebSocket ASGI Message Format" and "WSGI Compatibility".
    """

    def __init__(
        self,
        wsgi_application: _Application,
        duplicate_header_limit: int = 100,
        *,
        read_ahead_bytes: int = _READ_AHEAD_BYTES,
    ) -> None:
        self.wsgi_application = wsgi_application
        self.duplicate_header_limit = duplicate_header_limit
        self.read_ahead_bytes = read_ahead_bytes

    async def __call__(self, scope: _Scope, receive: Receive, send: Send) -> None:
        """Answer one scope; see `WsgiToAsgiInstance`."""
        instance = WsgiToAsgiInstance(
            self.wsgi_application,
            self.duplicate_header_limit,
            read_ahead_bytes=self.read_ahead_bytes,
        )
        await instance(scope, receive, send)


class WsgiToAsgiInstance:
    """One request on its way through a WSGI application.

    The WSGI application runs in a thread, in a copy of the context of the ASGI task, and `send` runs on
    the loop of that task. Thread-sensitive code that it calls through `async_to_sync` comes back to its thread. A cancelled
    task ends when the application does: what that waits for in `async_to_sync` is cancelled, its iterable is not asked
    for more, and closed.

    Args:
        wsgi_application: As for `WsgiToAsgi`.
        duplicate_header_limit: As for `WsgiToAsgi`.
        read_ahead_bytes: As for `WsgiToAsgi`.

    Attributes:
        scope: The scope of the request, once called.

    Source: PEP 3333.
    """

    scope: _Scope
    _answer: Answer

    def __init__(
        self,
        wsgi_application: _Application,
        duplicate_header_limit: int = 100,
        *,
        read_ahead_bytes: int = _READ_AHEAD_BYTES,
    ) -> None:
        self.wsgi_application = wsgi_application
        self.duplicate_header_limit = duplicate_header_limit
        self.read_ahead_bytes = read_ahead_bytes
        self._response = Response()

    @property
    def response_started(self) -> bool:
        """Whether the headers were sent, or are with the first bytes on their way."""
        return self._response.started

    @property
    def response_content_length(self) -> int | None:
        """Bytes the response may have, if its headers say so."""
        return self._response.content_length

    @property
    def response_start(self) -> Message | None:
        """The message that starts the response, once start_response was called."""
        return self._response.start

    async def __call__(self, scope: _Scope, receive: Receive, send: Send) -> None:
        """Answer one scope.

        An HTTP request goes to the WSGI application. A lifespan gets its startup and shutdown confirmed,
        for there is nothing to do; a WebSocket is refused. A client that leaves ends the call quietly, at the latest when the
        application asks for more of the request or has more to send. So does a `send` that raises OSError, which is how servers
        tell of it; the log has it as information. A request that no thread becomes free for in time is answered 503.

        Args:
            scope: The ASGI scope.
            receive: Awaited for the request, on the caller's loop, by one task at a time.
            send: Awaited with each message of the response, on the caller's loop.

        Raises:
            ValueError: The scope, or a message while the request is read, is of a type unknown here.
            RuntimeError: The application broke PEP 3333: the message says how.
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
            A new dict. It has a CONTENT_LENGTH, if the request has none, when the whole body has come already.

        Raises:
            ValueError: A header is repeated more often than `duplicate_header_limit`.

        Source: PEP 3333, "environ Variables".
        """
        answer = getattr(self, "_answer", None)
        body_bytes = 0 if answer is None else answer.inbox.body_bytes()
        return environ_of(scope, body, body_bytes, self.duplicate_header_limit)

    def start_response(
        self,
        status: str,
        response_headers: list[tuple[str, str]],
        exc_info: ExcInfo | None = None,
    ) -> Callable[[bytes], object]:
        """Take the status and headers of the response, as WSGI has it. Nothing is sent yet.

        They are sent with the first bytes of the body, so that until then a call with `exc_info` can
        replace them by those of an error page.

        Args:
            status: Status code, with or without a reason: ``"204 No Content"`` or ``"204"``.
            response_headers: Pairs of name and value, of characters up to U+00FF.
            exc_info: What `sys.exc_info` returned, when an error page is started.

        Returns:
            WSGI's ``write``: sends a piece of the body before those that are iterated over. It raises ValueError beyond the
            Content-Length, and a ConnectionResetError once the client has left.

        Raises:
            ValueError: It was called before and `exc_info` is missing, the status is no number, or a header has a
                line end or a character beyond U+00FF.
            BaseException: The one in `exc_info`, because the headers are sent already.

        Source: PEP 3333, "The start_response() Callable".
        """
        self._response.begin(status, response_headers, exc_info)
        return self._answer.write

    @sync_to_async
    def run_wsgi_app(self, body: IO[bytes]) -> None:
        """Call the WSGI application and send its answer. Awaited on the loop by `__call__`, runs in a thread.

        The application's iterable is closed in the same thread, however the answer ends. Bytes beyond
        its Content-Length are not sent, and it is not iterated further; the same goes for responses without a body.

        Args:
            body: The request body, at its start.

        Raises:
            RuntimeError: The application has not called start_response, or its answer is shorter than its Content-Length.
            Exception: Whatever the application or `send` raised, unless the client has left and that is why.

        Source: PEP 3333, "Specification Details" and "Handling the Content-Length Header".
        """
        answer = self._answer
        answer.enter()
        try:
            environ = self.build_environ(self.scope, body)
        except TooManyHeadersError:
            answer.left_over = plain_response(400, b"Bad Request: Too many duplicate headers")
        else:
            answer.run(lambda: self.wsgi_application(environ, self.start_response))

    def sync_send(self, message: Any) -> None:
        """Send a message, and return when the server has taken it; in the thread of the application.

        Args:
            message: An ASGI message, as for `send`.

        Raises:
            ConnectionResetError: The client has left.
        """
        self._answer.deliver([message])

    async def _answer_request(self, scope: _Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._response.to_head = scope["method"] == "HEAD"
        answer = self._answer = Answer(receive, send, self._response, self.read_ahead_bytes)
        inbox = answer.inbox
        try:
            await inbox.open()
            if not inbox.gone:
                await self._run_in_thread(answer)
                await answer.send_left_over()
        finally:
            await inbox.close()

    async def _run_in_thread(self, answer: Answer) -> None:
        context = ThreadSensitiveContext()
        context.holder = f"{self.scope['method']} {self.scope['path']}"
        loop = asyncio.get_running_loop()
        timer = loop.call_later(_LISTEN_AFTER_SECONDS, answer.inbox.listen)
        try:
            async with context:
                await self.run_wsgi_app(answer.inbox.body())
        except WorkersBusy as error:
            if answer.entered:
                raise
            logger.warning("Service Unavailable: %s: %s", context.holder, error)
            answer.left_over = _busy_response()
        finally:
            timer.cancel()


def _busy_response() -> list[Message]:
    seconds = max(1, math.ceil(_state.request_workers.wait_seconds or 0))
    retry_after = (b"retry-after", str(seconds).encode())
    return plain_response(503, b"Service Unavailable", retry_after)


async def _confirm_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _refuse_websocket(receive: Receive, send: Send) -> None:
    await receive()  # the server offers the connection with this message; only then is it refused
    await send({"type": "websocket.close", "code": 1000})
