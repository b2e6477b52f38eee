"""What the tests of WSGI applications share: a server to stand before them, and applications."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from django_asyncbridge.bridge.wsgi import WsgiToAsgi

Environ = dict[str, Any]
Message = dict[str, Any]
Wsgi = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "query_string": b"",
    "headers": [],
}
REQUEST: list[Message] = [{"type": "http.request"}]


def answer(
    application: Wsgi,
    messages: Iterable[Message] = REQUEST,
    *,
    duplicate_header_limit: int = 100,
    **scope: Any,
) -> list[Message]:
    """Serve one scope and return what was sent."""
    return asyncio.run(
        serve(WsgiToAsgi(application, duplicate_header_limit), {**SCOPE, **scope}, messages)
    )


async def serve(
    application: Callable[..., Any], scope: dict[str, Any], messages: Iterable[Message]
) -> list[Message]:
    left, sent = list(messages), []

    async def receive() -> Message:
        return left.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await application(scope, receive, send)
    assert left == []
    return sent


def environ_of(
    messages: Iterable[Message] = REQUEST, *, duplicate_header_limit: int = 100, **scope: Any
) -> Environ:
    """Return the environ that the application gets for a request."""
    seen: list[Environ] = []

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        seen.append(environ)
        start_response("200 OK", [])
        return []

    answer(application, messages, duplicate_header_limit=duplicate_header_limit, **scope)
    return seen[0]


def start(status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


END = {"type": "http.response.body"}


def responding(
    *chunks: bytes, status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()
) -> Wsgi:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, list(headers))
        return chunks

    return application


class Closing:
    """An iterable of chunks that notes whether, and in which thread, it was closed."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self.chunks = iter(chunks)
        self.closed: list[int] = []
        self.threads: list[int] = []

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.threads.append(threading.get_ident())
        chunk = next(self.chunks)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def close(self) -> None:
        self.closed.append(threading.get_ident())

    def application(self, *headers: tuple[str, str]) -> Wsgi:
        def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
            start_response("200 OK", list(headers))
            return self

        return application


def failed() -> Any:
    """Return what sys.exc_info() does where an application handles its own failure."""
    try:
        raise LookupError("its own")
    except LookupError:
        return sys.exc_info()


class Server:
    """Stands for an ASGI server: gives messages when the test does, and keeps what is sent.

    `put` and `leave` may be called in any thread.
    """

    def __init__(self, *messages: Message) -> None:
        self.loop = asyncio.get_running_loop()
        self.sent: list[Message] = []
        self.received = 0
        self._queue: asyncio.Queue[Message] = asyncio.Queue()
        self._news = asyncio.Event()
        for message in messages:
            self._queue.put_nowait(message)

    def put(self, body: bytes, more_body: bool = True) -> None:
        message = {"type": "http.request", "body": body, "more_body": more_body}
        self.loop.call_soon_threadsafe(self._queue.put_nowait, message)

    def leave(self) -> None:
        self.loop.call_soon_threadsafe(self._queue.put_nowait, DISCONNECT)

    async def receive(self) -> Message:
        message = await self._queue.get()
        self.received += 1
        return message

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self._news.set()

    async def until_sent(self, count: int) -> None:
        """Wait until that many messages were sent."""
        while len(self.sent) < count:
            self._news.clear()
            await self._news.wait()

    def bodies(self) -> list[bytes]:
        """Return the pieces of the body that were sent."""
        return [message["body"] for message in self.sent if message.get("body")]

    async def serve(
        self, application: "Wsgi | WsgiToAsgi", method: str = "GET", **options: Any
    ) -> None:
        """Have one request answered."""
        asgi = (
            application
            if isinstance(application, WsgiToAsgi)
            else WsgiToAsgi(application, **options)
        )
        await asgi({**SCOPE, "method": method}, self.receive, self.send)


def request(body: bytes, more_body: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more_body}


DISCONNECT: Message = {"type": "http.disconnect"}
