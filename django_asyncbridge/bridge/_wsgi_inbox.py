"""`Inbox`: the messages that a server has for a WSGI request, from the event loop to the application's thread.

Theory of operation. The first message is received in the task of the request. If the body is not complete with it, a task
of the inbox (the pump) goes on, up to `read_ahead_bytes` ahead of the application, which takes the pieces with
`take`. Once the body is complete, the same task waits for the client to leave; for a request without a body, and for
one whose body came at once, it is only started when the response takes long (`listen`).

The home thread is busy with the application meanwhile, so what a `receive` of some middleware needs of a thread runs in one
of its own. Nobody can come to wait for himself in this way.

Which thread may touch what. Everything belongs to the thread of the loop, except `take` and `visit`, which the application
calls in any thread. They share the pieces: the loop appends, and `take` removes; each of the two counts is written on
one side. `complete`, `gone` and `error` only ever turn true, on the loop, after the last piece was appended.

Source: ASGI specification, "HTTP"; failure cases C84, C91, C92.
"""

import asyncio
import concurrent.futures
import io
import logging
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import IO, Any, ParamSpec, TypeAlias, TypeVar

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import AsyncToSync, ThreadSensitiveContext

__all__ = ("ClientLeftError", "Inbox", "Receive", "RequestBody")

Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
P = ParamSpec("P")
R = TypeVar("R")

# How long the application is not called yet while a small body is on its way: long enough for a slow client to
# keep no thread, short enough for one that waits for the response before it goes on. Not measured.
_PATIENCE_SECONDS = 1.0
# How long a `receive` that is cancelled at the end of the request is waited for. Not measured.
_GRACE_SECONDS = 1.0

# A piece that a server hands over is seldom larger. Not measured.
_BUFFER_BYTES = 65536

logger = logging.getLogger("django_asyncbridge.bridge.wsgi")


class ClientLeftError(ConnectionResetError):
    """The client has left; what the application reads and writes of its request fails with this."""


class Inbox:
    """What comes from the client: the pieces of the body, and that it has left.

    Args:
        receive: the server's.
        read_ahead_bytes: how many bytes of the body may wait for the application. The last piece may exceed it.
        on_gone: called on the loop when the client has left.

    Attributes:
        complete: whether the body has been received to its end.
        gone: whether the client has left.
        error: what `receive` raised before the body was complete.
    """

    def __init__(
        self, receive: Receive, read_ahead_bytes: int, on_gone: Callable[[], object]
    ) -> None:
        self.complete = self.gone = False
        self.error: Exception | None = None
        self._receive = receive
        self._limit = read_ahead_bytes
        self._on_gone: Callable[[], object] | None = on_gone
        self._loop = asyncio.get_running_loop()
        self._pieces: deque[bytes] = deque()
        self._received = self._taken = 0
        # Where in the first piece the application has got to.
        self._offset = 0
        self._pump: asyncio.Task[None] | None = None
        self._closed = False
        self._patient = True
        # What the pump waits for while the limit is reached, and what others wait for while there is nothing.
        self._room: asyncio.Event | None = None
        self._news = asyncio.Event()

    # --- On the loop --------------------------------------------------------------

    async def open(self) -> None:
        """Receive the body, or its beginning: as much as may wait, and as comes in a short time.

        Raises:
            ValueError: a message is of a type unknown here.
            Exception: what `receive` raises.
        """
        self._accept(await self._receive())
        if self._ended():
            return
        self.listen()
        timer = self._loop.call_later(_PATIENCE_SECONDS, self._lose_patience)
        try:
            while self._patient and self._received < self._limit and not self._ended():
                await self._next_news()
        finally:
            timer.cancel()
        if self.error is not None:
            raise self.error

    async def close(self) -> None:
        """Receive nothing more. Whoever reads the body after that is told so."""
        self._closed = True
        # Both lead back to here: the one to the answer, the other to the frames it went through.
        self._on_gone = self.error = None
        if self._pump is not None:
            self._tell()
            self._pump.cancel()
            await asyncio.wait((self._pump,), timeout=_GRACE_SECONDS)

    def listen(self) -> None:
        """Go on receiving: the body, then that the client has left. Any number of times."""
        if self._pump is None and not self.gone and not self._closed:
            self._pump = self._loop.create_task(self._pump_messages())

    def leave(self) -> None:
        """Take note that the client has left."""
        if not self.gone:
            self.gone = True
            self._tell()
            if self._on_gone is not None:
                self._on_gone()

    def body(self) -> IO[bytes]:
        """Return the body as a file; once."""
        if self.complete:
            body = io.BytesIO(b"".join(self._pieces))
            self._pieces.clear()
            return body
        return io.BufferedReader(RequestBody(self), _BUFFER_BYTES)

    def body_bytes(self) -> int:
        """Return how long the body is; 0 if that is not known yet."""
        return self._received if self.complete else 0

    async def _pump_messages(self) -> None:
        try:
            async with ThreadSensitiveContext(executor=_state.request_workers):
                while not self.gone:
                    await self._wait_for_room()
                    if self._accept(await self._receive()):
                        return
        except Exception as error:  # noqa: BLE001  # it is the reader's; once there is none, nobody's
            if self.complete:
                logger.info("The server's receive() failed after the request: %r", error)
            else:
                self.error = error
                self._tell()

    async def _wait_for_room(self) -> None:
        # Before the look: if the application takes a piece after that, it sees the event.
        self._room = asyncio.Event()
        if self._is_full():
            await self._room.wait()
        self._room = None

    def _is_full(self) -> bool:
        return not self.complete and self._received - self._taken >= max(self._limit, 1)

    def _accept(self, message: Mapping[str, Any]) -> bool:
        """Take in a message; True if it makes no sense to ask for another."""
        if message["type"] == "http.disconnect":
            self.leave()
        elif message["type"] != "http.request":
            raise ValueError(f"Expected a message of type http.request, not {message['type']!r}.")
        elif self.complete:
            return True  # a server that repeats itself would do so for ever
        else:
            piece = message.get("body", b"")
            if piece:
                self._received += len(piece)
                self._pieces.append(piece)
            self.complete = not message.get("more_body")
            self._tell()
        return False

    def _lose_patience(self) -> None:
        self._patient = False
        self._tell()

    def _ended(self) -> bool:
        return self.complete or self.gone or self._closed or self.error is not None

    def _tell(self) -> None:
        self._news.set()

    async def _next_news(self) -> None:
        self._news.clear()
        await self._news.wait()

    async def wait_for_piece(self) -> None:
        """Wait until there is a piece of the body, or there will be none."""
        while not self._pieces and not self._ended():
            await self._next_news()

    # --- In the thread of the application ---------------------------------------------

    def take(self, size: int) -> bytes:
        """Return the next piece of the body, at most `size` bytes of it; none at its end. It waits for the loop.

        Raises:
            ClientLeftError: the client has left before the end.
            RuntimeError: called in the thread of the event loop, which cannot wait for itself.
            ValueError: the request is over.
            Exception: what `receive` raised.
        """
        # Before the look: what comes last is appended before that is true.
        ended = self._ended()
        while not self._pieces:
            if ended:
                self._refuse_unless_complete()
                return b""
            _refuse_on_loop()
            self.visit(_wait_for_piece, self)
            ended = self._ended()
        piece = self._pieces[0][self._offset : self._offset + size]
        self._offset += len(piece)
        if self._offset == len(self._pieces[0]):
            self._pieces.popleft()
            self._offset = 0
        self._taken += len(piece)
        # Not for each piece: waking the loop is dear. Half of what may wait is left to work with meanwhile.
        room = self._room
        if room is not None and (self._received - self._taken) * 2 <= self._limit:
            self._loop.call_soon_threadsafe(room.set)
        return piece

    def _refuse_unless_complete(self) -> None:
        if self.complete:
            return
        if self.error is not None:
            raise self.error
        if self.gone:
            raise ClientLeftError("the client left before it had sent its request")
        raise ValueError("wsgi.input was read after the end of its request")

    def visit(self, function: AsyncToSync[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a coroutine function on the loop of the request, and wait for it.

        Args:
            function: as a sync function. One for all requests, since making one costs as much as a fourth of a visit.
            args: for it.
            kwargs: for it.

        Raises:
            ClientLeftError: it was cancelled since the client has left.
            Exception: what it raises.
        """
        try:
            if _state.calling_loop() is self._loop:
                return function(*args, **kwargs)
            # A thread that the application started itself: no home, nobody to be cancelled by.
            coroutine: Any = function.awaitable(*args, **kwargs)
            future: concurrent.futures.Future[R] = asyncio.run_coroutine_threadsafe(
                coroutine, self._loop
            )
            return future.result()
        except (asyncio.CancelledError, concurrent.futures.CancelledError):
            if self.gone:
                raise ClientLeftError("the client has left") from None
            raise


@AsyncToSync
async def _wait_for_piece(inbox: Inbox) -> None:
    await inbox.wait_for_piece()


def _refuse_on_loop() -> None:
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(
            "wsgi.input was read in async code, where waiting for the rest of the body would stop the event loop that "
            "receives it; read it in sync code, or have so much read before the application is called: "
            "WsgiToAsgi(application, read_ahead_bytes=...)"
        )


class RequestBody(io.RawIOBase):
    """The body as a raw file, to be put into an `io.BufferedReader`, which has all that WSGI asks for.

    Source: PEP 3333, "Input and Error Streams".
    """

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer` with what has come, at least a byte; 0 at the end."""
        piece = self._inbox.take(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        """Return what is left, in whole pieces as they come."""
        return b"".join(iter(lambda: self._inbox.take(sys.maxsize), b""))
