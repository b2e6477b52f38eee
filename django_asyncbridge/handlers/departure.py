"""`Departure`: end the work on a request whose client has left.

Only `receive` can tell that a client has left, and somebody has to wait in it, in a task of its own. Most requests are
over before anybody could leave, so the task is started a moment later: a server keeps the news until it is asked for.

When the client leaves, the request's task is cancelled once: async code ends where it waits, sync code can ask
`bridge.sync.cancelled`. At the end of the block that cancellation is taken back, so that clean-up after it can wait. A cancellation
by anybody else goes through.

Which thread may touch what. Everything runs in the thread of the request's event loop. `_leave` runs while the request's task
waits, so the cancellation takes effect inside the block, or not at all: leaving the block forbids it first.

Source: ASGI specification, "Disconnect - receive event"; failure case C79.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

__all__ = ("Departure",)

logger = logging.getLogger("django_asyncbridge.handlers")

_Receive = Callable[[], Awaitable[Any]]

# Starting and ending the task costs as much as a small view. Not measured what people notice; they do not notice this.
_PATIENCE_SECONDS = 0.05
# For a server whose `receive` does not end when it is cancelled. Not measured: such a server is broken.
_LISTENER_SECONDS = 1.0


class Departure:
    """Cancel the current task, within an ``async with`` block, when the client leaves.

    Attributes:
        happened: whether it has left.

    Args:
        receive: of the ASGI request, whose body has been read.
        what: the request's method and path, for the log.
    """

    def __init__(self, receive: _Receive, what: str) -> None:
        self.happened = False
        self._receive = receive
        self._what = what
        self._listener: asyncio.Task[None] | None = None
        self._over = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = loop.call_later(_PATIENCE_SECONDS, self._listen)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._over = True
        self._timer.cancel()
        if self._listener is not None:
            await self._end_listener(self._listener)
        if not self.happened:
            return False
        ours = self._task.uncancel() <= self._cancelling
        return ours and exc_type is asyncio.CancelledError

    def _listen(self) -> None:
        self._listener = asyncio.get_running_loop().create_task(self._wait_for_end())

    async def _wait_for_end(self) -> None:
        try:
            message = await self._receive()
        except Exception:
            # The server's; whether the client is there will be seen when it is sent something.
            logger.warning(
                "receive() of the server failed while %s was served", self._what, exc_info=True
            )
            return
        if message["type"] != "http.disconnect":
            logger.warning(
                "the server sent the message %r after the body of %s; expected http.disconnect",
                message["type"],
                self._what,
            )
        elif not self._over:
            self._leave()

    def _leave(self) -> None:
        self.happened = True
        logger.debug("the client has left: %s", self._what)
        self._task.cancel("the client has left")

    async def _end_listener(self, listener: "asyncio.Task[None]") -> None:
        if listener.done():
            return
        listener.cancel()
        done, _ = await asyncio.wait((listener,), timeout=_LISTENER_SECONDS)
        if not done:
            logger.warning(
                "receive() of the server goes on although it was cancelled, after %s", self._what
            )
