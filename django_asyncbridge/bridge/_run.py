"""`Run`: one coroutine on its way through an event loop, while a thread waits for it.

Theory of operation. The waiting thread has a loop start the coroutine, `start`, and serves its
`CurrentThreadExecutor` until the outcome is there; or it runs the loop itself (`_own_loop`). Whoever takes `_claim` first
decides whether the coroutine starts: the loop, or the waiting thread that wants it back because the loop has stopped or
because it was interrupted.

The error of work that this thread ran may become the outcome: then its traceback leads to the frames that waited
here, which is why they forget their variables when they end.

Which thread may touch what. `start`, `_cancel_task`, `_ended` and `Outcome`'s setters run in the loop's thread, all else
in the waiting one. `task` belongs to the loop's thread. `_loop` is written by that thread before `_cancel_wanted` is read there,
and by the waiting one the other way round, so a cancellation is seen by at least one of them. An `Outcome` is
complete before `notify` tells the waiting thread of it.
"""

import asyncio
import collections
import contextlib
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

from django_asyncbridge.bridge._crossings import Result, close
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor, _ForkedError

__all__ = ("LoopStoppedError", "Outcome", "Run")

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


def _nobody(outcome: object) -> None:
    """Be told of an outcome that nobody waits for yet."""


class Outcome:
    """What a coroutine returns or raises; a future for one thread that knows when it is told."""

    __slots__ = ("_done", "_error", "_value", "kind", "notify")

    def __init__(self) -> None:
        # As long as there is none, the call can only end because something was raised in the waiting thread.
        self.kind: Result = "raised"
        self.notify: Callable[[Outcome], None] = _nobody
        self._done = False
        self._value: Any = None
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Tell whether the outcome is there."""
        return self._done

    def set_result(self, value: Any) -> None:
        """Say what the coroutine has returned."""
        self._value = value
        self.kind = "returned"
        self._done = True
        self.notify(self)

    def set_exception(self, error: BaseException) -> None:
        """Say what the coroutine has raised."""
        self._error = error
        if isinstance(error, asyncio.CancelledError):
            self.kind = "cancelled"
        self._done = True
        self.notify(self)

    def result(self) -> Any:
        """Return or raise it, once; in the waiting thread."""
        value, error = self._value, self._error
        self._value = self._error = None
        try:
            if error is not None:
                raise error
            return value
        finally:
            # The traceback refers to this frame.
            del self, error, value


class Run:
    """A coroutine, the thread that waits for it, and where its outcome goes.

    Args:
        described: the name of the function that made the coroutine, for messages.
        coroutine: awaits `awaitable`, never raises, and completes `outcome`.
        awaitable: what the user's function returned.
        context: the context variables the coroutine starts with.
        executor: the waiting thread's.
        outcome: what the coroutine completes.
    """

    __slots__ = (
        "_cancel_wanted",
        "_claim",
        "_look_seconds",
        "_loop",
        "_stopped_at",
        "awaitable",
        "context",
        "coroutine",
        "described",
        "executor",
        "interruption",
        "outcome",
        "task",
    )

    def __init__(
        self,
        described: str,
        coroutine: Coroutine[Any, Any, None],
        awaitable: Awaitable[Any],
        context: Context,
        executor: CurrentThreadExecutor,
        outcome: Outcome,
    ) -> None:
        self.described = described
        self.coroutine = coroutine
        self.awaitable = awaitable
        self.context = context
        self.executor = executor
        self.outcome = outcome
        self.task: asyncio.Task[None] | None = None
        # The exception that a signal handler raised in the waiting thread; raised again when all has ended.
        self.interruption: BaseException | None = None
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
            self.outcome,
        )

    # --- In the loop's thread ----------------------------------------------------

    def start(
        self,
        loop: asyncio.AbstractEventLoop,
        main: Coroutine[Any, Any, None] | None = None,
        ended: "Callable[[asyncio.Task[None]], None] | None" = None,
    ) -> None:
        """Make the task, unless the coroutine was withdrawn.

        Args:
            loop: the loop, which runs in this thread or in none.
            main: a coroutine that awaits `coroutine` and is the task's instead.
            ended: called when the task has ended; it completes the outcome if nobody else can.
        """
        if not self._claim.acquire(blocking=False):
            if main is not None:
                main.close()
            return
        self._loop = loop
        try:
            self.task = task = _make_task(loop, main or self.coroutine, self.context)
        except BaseException as error:  # noqa: BLE001  # it belongs to the waiting thread
            if main is not None:
                main.close()
            self._fail(error)
            return
        if not task.done():
            task.add_done_callback(ended or self._ended)
        if self._cancel_wanted:
            task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        # A task that is cancelled before its first step never comes to complete the outcome.
        if not self.outcome.done():
            self._fail(asyncio.CancelledError())

    def _tell(self, outcome: Outcome) -> None:
        """Let the waiting thread go on; at the end of the coroutine."""
        if self.task is not None:
            self.task.remove_done_callback(self._ended)
        self.executor._close()

    def _fail(self, error: BaseException) -> None:
        """Complete the outcome in place of the coroutine, which never began."""
        # Closed, because Python warns of what was never awaited.
        self.coroutine.close()
        close(self.awaitable)
        self.outcome.set_exception(error)

    def _cancel_task(self) -> None:
        if self.task is not None:
            self.task.cancel()

    # --- In the waiting thread ---------------------------------------------------

    def discard(self) -> bool:
        """Have the coroutine never start, if it has not.

        Returns:
            False if it has started, or was withdrawn before.
        """
        if not self._claim.acquire(blocking=False):
            return False
        self._fail(asyncio.CancelledError())
        return True

    def interrupt(self) -> None:
        """Have the coroutine cancelled, or never started."""
        if not self.discard():
            self._cancel()

    def _cancel(self) -> None:
        # Read by `start` after it has made the task: one of the two sees the other's.
        self._cancel_wanted = True
        if self._loop is not None:
            # RuntimeError: the loop is closed, and the task with it.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel_task)

    def interrupted(self, error: BaseException) -> None:
        """Take note of what a signal handler raised, to be raised when the coroutine has ended.

        Raises:
            BaseException: `error`, if it is the second.
        """
        if self.interruption is not None:
            raise error
        self.interruption = error
        self.interrupt()

    def on_loop(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Run on a loop of another thread and wait for the outcome.

        Returns:
            False if the coroutine has not started and never will here, as the loop has stopped.

        Raises:
            LoopStoppedError: when the loop stopped in the middle.
        """
        self._loop = loop
        self.outcome.notify = self._tell
        try:
            loop.call_soon_threadsafe(self.start, loop)
            self.wait(self.outcome.done, self._watch, _FIRST_LOOK_SECONDS)
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

    def wait(
        self, done: Callable[[], bool], watch: Callable[[], float], watch_seconds: float
    ) -> None:
        """Serve the executor until `done` is true.

        An exception raised in this thread meanwhile, as by a signal handler (Ctrl-C), cancels the coroutine and is kept in
        `interruption` until that has ended; a second one is raised at once.
        """
        try:
            while True:
                try:
                    self.executor._serve(done, watch, watch_seconds)
                except (_WithdrawnError, LoopStoppedError, _ForkedError):
                    if self.interruption is None:
                        raise
                except BaseException as error:  # noqa: BLE001  # a signal handler's
                    self.interrupted(error)
                    continue
                break
        finally:
            del self, done, watch

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


if sys.version_info >= (3, 12):

    def _make_task(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], context: Context
    ) -> "asyncio.Task[None]":
        """Make a task; if the loop runs, take its first step at once: a turn of the loop costs as much as all the rest."""
        if loop.get_task_factory() is None:
            return asyncio.Task(coroutine, loop=loop, context=context, eager_start=True)
        return loop.create_task(coroutine, context=context)

else:

    def _make_task(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], context: Context
    ) -> "asyncio.Task[None]":
        """As above. Python 3.11 has no such tasks, so the first step is taken out of the queue it was put into.

        The attributes are private; but that version's asyncio does not change any more.
        """
        task: asyncio.Task[None] = loop.create_task(coroutine, context=context)
        ready = getattr(loop, "_ready", None)
        if isinstance(ready, collections.deque) and ready and loop.is_running():
            step = ready[-1]
            # The context is this task's alone. Without that, another thread's callback may have come in between.
            if step._context is context:
                ready.remove(step)
                step._run()
        return task
