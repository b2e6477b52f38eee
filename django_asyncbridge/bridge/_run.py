"""`Run`: one coroutine on its way through an event loop, while a thread waits for it.

Theory of operation. The waiting thread asks a loop to start the coroutine (`start`, called in the loop's thread)
and serves its `CurrentThreadExecutor` until the result is there. Whoever takes `_claim` first decides
whether the coroutine starts: the loop, or the waiting thread that wants it back because the loop has stopped or
because it was interrupted.

The error of a work item that this thread ran may become the result: then its traceback leads to the frames that waited
here, which is why they forget their variables when they end.

Which thread may touch what. `start`, `_cancel_task` and `_ended` run in the loop's thread, all else in the waiting
thread. `task` belongs to the loop's thread. `_loop` is written by that thread before `_cancel_wanted` is read there, and by
the waiting one the other way round, so a cancellation is seen by at least one of them.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context
from typing import Any

from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor, _ForkedError

__all__ = ("LoopStoppedError", "Run")

# How often a waiting thread looks whether its loop still runs, seconds: soon at first, so that a call to a
# stopped loop costs little, then seldom, so that many waiting threads cost nothing. Not measured.
_FIRST_LOOK_SECONDS = 0.05
_LOOKS_SECONDS = 1.0
# How long a loop may be stopped in the middle of a coroutine, seconds: between two run_until_complete() calls. Not measured.
_STOPPED_SECONDS = 1.0


class _WithdrawnError(Exception):
    """The coroutine has not started, because its loop is not running; it can be run elsewhere."""


class LoopStoppedError(RuntimeError):
    """The event loop stopped in the middle of the coroutine, which will never end."""


class Run:
    """A coroutine, the thread that waits for it, and where its result goes.

    Args:
        described: the name of the function that made the coroutine, for messages.
        coroutine: awaits `awaitable`, never raises, and completes `result`.
        awaitable: what the user's function returned.
        context: the context variables the coroutine starts with.
        executor: the waiting thread's.
        result: what the coroutine completes.
    """

    def __init__(
        self,
        described: str,
        coroutine: Coroutine[Any, Any, None],
        awaitable: Awaitable[Any],
        context: Context,
        executor: CurrentThreadExecutor,
        result: "Future[Any]",
    ) -> None:
        self.described = described
        self.coroutine = coroutine
        self.awaitable = awaitable
        self.context = context
        self.executor = executor
        self.result = result
        self.task: asyncio.Task[None] | None = None
        self._claim = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._look_seconds = _FIRST_LOOK_SECONDS
        self._stopped_at: float | None = None
        self._cancel_wanted = False

    def again(self) -> "Run":
        """Return a run of the same coroutine, for another loop; this one must have been withdrawn."""
        return Run(
            self.described,
            self.coroutine,
            self.awaitable,
            self.context,
            self.executor,
            self.result,
        )

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make the task, unless the coroutine was withdrawn; in the thread of `loop`."""
        if not self._claim.acquire(blocking=False):
            return
        self._loop = loop
        try:
            self.task = self.context.run(loop.create_task, self.coroutine)
        except BaseException as error:  # noqa: BLE001  # it belongs to the waiting thread
            self._fail(error)
            return
        self.task.add_done_callback(self._ended)
        if self._cancel_wanted:
            self.task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        # A task that is cancelled before its first step never comes to complete the result.
        if not self.result.done():
            self._fail(asyncio.CancelledError())

    def _fail(self, error: BaseException) -> None:
        """Complete the result in place of the coroutine, which never began."""
        # Closed, because Python warns of what was never awaited.
        self.coroutine.close()
        if isinstance(self.awaitable, Coroutine):
            self.awaitable.close()
        self.result.set_exception(error)

    def discard(self) -> bool:
        """Have the coroutine never start, if it has not; in the waiting thread.

        Returns:
            False if it has started, or was withdrawn before.
        """
        if not self._claim.acquire(blocking=False):
            return False
        self._fail(asyncio.CancelledError())
        return True

    def interrupt(self) -> None:
        """Have the coroutine cancelled, or never started; in the waiting thread."""
        if not self.discard():
            self._cancel()

    def on_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Run on a loop of another thread and wait for the result; in the waiting thread.

        Returns:
            False if the coroutine has not started and never will here, as the loop has stopped.

        Raises:
            LoopStoppedError: when the loop stopped in the middle.
        """
        self._loop = loop
        try:
            loop.call_soon_threadsafe(self.start, loop)
            self.wait(self.result, self._watch)
        except _WithdrawnError:
            return False
        except RuntimeError:
            # From call_soon_threadsafe: the loop is closed.
            if self._claim.acquire(blocking=False):
                return False
            raise
        finally:
            del self
        return True

    def wait(self, future: "Future[Any]", watch: Callable[[], float] | None = None) -> None:
        """Serve the executor until `future` is done; in the waiting thread.

        An exception raised in this thread meanwhile, as by a signal handler (Ctrl-C), cancels the coroutine and is
        raised when that has ended; a second one is raised at once.
        """
        interruption: BaseException | None = None
        try:
            while True:
                try:
                    self.executor._run_until(future, watch)
                    break
                except (_WithdrawnError, LoopStoppedError, _ForkedError):
                    if interruption is not None:
                        raise interruption from None
                    raise
                except BaseException as error:
                    if interruption is not None:
                        raise
                    interruption = error
                    self.interrupt()
            if interruption is not None:
                raise interruption
        finally:
            del self, future, watch, interruption

    def _cancel(self) -> None:
        # Read by `start` after it has made the task: one of the two sees the other's.
        self._cancel_wanted = True
        if self._loop is not None:
            # RuntimeError: the loop is closed, and the task with it.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def _watch(self) -> float:
        """Notice that the loop has stopped; return the seconds until the next look."""
        assert self._loop is not None
        if self._loop.is_running():
            self._stopped_at = None
            seconds = self._look_seconds
            self._look_seconds = min(2 * seconds, _LOOKS_SECONDS)
            return seconds
        now = time.monotonic()
        closed = self._loop.is_closed()
        if self._stopped_at is None and not closed:
            # It may be between two run_until_complete() calls.
            self._stopped_at = now
            return _FIRST_LOOK_SECONDS
        if self._claim.acquire(blocking=False):
            raise _WithdrawnError
        if closed or now - (self._stopped_at or now) > _STOPPED_SECONDS:
            self._cancel()
            raise LoopStoppedError(
                f"async_to_sync({self.described}) was waiting for a coroutine on {self._loop!r}, which "
                f"{'was closed' if closed else 'has stopped'} before the coroutine ended; keep the loop running "
                "until its sync calls have ended, for instance with asyncio.run()"
            )
        return _FIRST_LOOK_SECONDS
