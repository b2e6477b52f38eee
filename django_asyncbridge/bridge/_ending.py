"""What a server needs to end in order: to hear SIGTERM, to see who is idle, to say what it waits for.

Everything here runs on the thread of the event loop; the handler of SIGTERM in the main thread.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Collection, Coroutine, Iterator
from types import FrameType
from typing import Any

__all__ = (
    "InputQueue",
    "Sigterm",
    "ended",
    "failure_of",
    "is_idle",
    "raise_failure",
    "to_the_end",
    "watch",
)

logger = logging.getLogger("django_asyncbridge.bridge.server")

# After so long a wait for what was told to end, and again after each such time, the log names it. Long
# enough for an orderly goodbye; not measured.
_PATIENCE_SECONDS = 10.0


class InputQueue(asyncio.Queue[Any]):
    """The input of one application, which knows whether the application waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.readers = 0

    async def get(self) -> Any:
        """Take the next message, and count among the readers meanwhile."""
        self.readers += 1
        try:
            return await super().get()
        finally:
            self.readers -= 1


def is_idle(queue: "asyncio.Queue[Any]") -> bool:
    """Tell whether an application waits for input that is not there."""
    # A message stays in the queue until its reader goes on, so "empty" covers one just put.
    return isinstance(queue, InputQueue) and queue.readers > 0 and queue.empty()


class Sigterm:
    """Turns SIGTERM into the cancellation of a task, as `asyncio.run` does with Ctrl-C."""

    def __init__(self) -> None:
        self.received = False
        self._previous: Any = None

    @contextlib.contextmanager
    def cancels_this_task(self) -> Iterator[None]:
        """Take SIGTERM over for the block, where that can be done and is wanted."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None

        def on_sigterm(signum: int, frame: FrameType | None) -> None:
            if not self.received:  # a second cancellation would only disturb what is ending by then
                self.received = True
                loop.call_soon_threadsafe(task.cancel)

        # Not loop.add_signal_handler: that would go on hearing the signal beside a handler that
        # handle() installs, and cut its graceful end short.
        if not self._install(on_sigterm):
            yield
            return
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGTERM) is on_sigterm:
                signal.signal(signal.SIGTERM, self._previous)

    def _install(self, handler: Callable[[int, FrameType | None], None]) -> bool:
        previous = signal.getsignal(signal.SIGTERM)
        if previous in (signal.SIG_IGN, None):  # None: not set by Python, so it cannot be put back
            return False
        try:
            signal.signal(signal.SIGTERM, handler)
        except ValueError:  # not in the main thread
            return False
        self._previous = previous
        return True

    def pass_on(self) -> None:
        """Let the handler that was there before hear of it, after the block."""
        if self.received and callable(self._previous):
            self._previous(signal.SIGTERM, None)


def failure_of(task: "asyncio.Future[Any]") -> BaseException | None:
    """What a task failed with; None if it runs, ended well, cancelled, or with the end of the process."""
    if not task.done() or task.cancelled():
        return None
    exception = task.exception()
    # Those two went up through the event loop when they were raised. Once is enough.
    return None if isinstance(exception, (KeyboardInterrupt, SystemExit)) else exception


async def watch(handler: "asyncio.Future[None]", checker: "asyncio.Future[None]") -> None:
    """Wait until the handler is over, or the checker has failed."""
    await asyncio.wait([handler, checker], return_when=asyncio.FIRST_COMPLETED)
    if not handler.done() and not checker.cancelled() and failure_of(checker) is None:
        await asyncio.wait([handler])
    for task in (handler, checker):
        if task.cancelled():
            task.result()  # raises CancelledError


async def to_the_end(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await a coroutine that must not be interrupted; a cancellation takes effect after it."""
    task = asyncio.ensure_future(coroutine)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError


async def ended(futures: "Collection[asyncio.Future[Any]]", what: str) -> None:
    """Wait until all are done, and name in the log what that takes long for."""
    pending = set(futures)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)
        if pending:
            logger.warning("The server cannot end: it waits for %s: %r", what, pending)


def raise_failure(tasks: "list[asyncio.Future[None]]") -> None:
    """Raise what the first task failed with, log what another did, and let go of both."""
    failures = [failure for failure in map(failure_of, tasks) if failure is not None]
    # The lists of this and the calling frame are in the traceback of what is raised: emptied, they
    # make no circle with it.
    tasks.clear()
    for failure in failures[1:]:
        logger.error("Another failure while the server ended: %s", failure, exc_info=failure)
    try:
        if failures:
            raise failures[0]
    finally:
        failures.clear()
