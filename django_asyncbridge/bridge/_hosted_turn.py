"""`Turn`: the part of a run in which a worker runs the event loop, while the thread that is home serves its executor.

Which thread may touch what. A `Turn` is made by the waiting thread and run by one worker; `done` is set when that has left the
loop, and `error` before. `ForwardedInterrupt` and `Watch` belong to the waiting thread, but for `_handle`, which the worker's
loop calls.
"""

import asyncio
import contextlib
import functools
import math
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor

__all__ = ("LOOKS_SECONDS", "ForwardedInterrupt", "Turn", "Watch")

# How often a waiting thread wakes, seconds: a signal that a worker raised has its handler run in the main thread, which is not
# woken by it. Not measured.
LOOKS_SECONDS = 0.5
# How long an interrupted thread waits for a loop that does not stop, as something blocks it, seconds. Not measured.
_STUCK_SECONDS = 5.0


class Turn:
    """The part of a run in which a worker runs the loop.

    Args:
        run_loop: runs it.
        executor: the waiting thread's.

    Attributes:
        done: whether the worker has left the loop.
        error: what running the loop raised.
        refusal: why no worker will run it.
    """

    __slots__ = ("_executor", "_waiting", "_work", "done", "error", "refusal")

    def __init__(self, run_loop: Callable[[], None], executor: CurrentThreadExecutor) -> None:
        self._executor = executor
        # Taken by the worker that runs it, and by the one that tells of it, so that nobody else does.
        self._work = [run_loop]
        self._waiting = [executor]
        self.done = False
        self.error: BaseException | None = None
        self.refusal: RuntimeError | None = None

    def is_done(self) -> bool:
        """Tell whether the worker has left the loop."""
        return self.done

    def run(self) -> None:
        """Run the loop; in the worker."""
        try:
            run_loop = self._work.pop()
        except IndexError:
            return
        try:
            run_loop()
        except BaseException as error:  # noqa: BLE001  # it belongs to the waiting thread
            self.error = error
        finally:
            self.done = True

    def deliver(self) -> None:
        """Tell the waiting thread, once; in the worker."""
        if self.done:
            with contextlib.suppress(IndexError):
                self._waiting.pop()._close()

    def drop(self, error: BaseException | None) -> None:
        """Take note that no worker will run it, unless one has."""
        with contextlib.suppress(IndexError):
            self._work.pop()
            self.refusal = RuntimeError(str(error))
            self.done = True
            self._executor._queue.put(None)

    def wanted(self) -> bool:
        """Tell whether nobody has begun it."""
        return bool(self._work)


class Watch:
    """Gives a loop up that does not stop."""

    __slots__ = ("_until", "interruption")

    def __init__(self) -> None:
        # What was raised in the waiting thread.
        self.interruption: BaseException | None = None
        self._until = math.inf

    def look(self) -> float:
        """Raise `interruption` if it has waited too long; return the seconds until the next look."""
        if self.interruption is not None:
            now = time.monotonic()
            self._until = min(self._until, now + _STUCK_SECONDS)
            if now >= self._until:
                self.interruption.add_note(
                    f"The event loop did not stop within {_STUCK_SECONDS} s, as something blocks it."
                )
                raise self.interruption
        return LOOKS_SECONDS


class ForwardedInterrupt:
    """A block in which a worker runs a loop and Ctrl-C, if the Runner handles that, is handled there.

    The Runner's handler cancels the task, which belongs to the thread of the loop. A second Ctrl-C raises at once.
    """

    __slots__ = ("_handler", "_loop", "_pending")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handler: Any = None
        # One entry for the Ctrl-C that is on its way; taken by the thread that handles it.
        self._pending: list[int] | None = None

    def __enter__(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if isinstance(handler, functools.partial):
            runner = getattr(handler.func, "__self__", None)
            if isinstance(runner, asyncio.Runner) and _is_main_thread():
                self._handler = handler
                signal.signal(signal.SIGINT, self._forward)

    def __exit__(self, *exc_info: object) -> None:
        if self._handler is not None and signal.getsignal(signal.SIGINT) == self._forward:
            signal.signal(signal.SIGINT, self._handler)
        # The loop may have stopped before it came to that.
        self._handle()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self._pending is not None:
            raise KeyboardInterrupt
        self._pending = [number]
        self._loop.call_soon_threadsafe(self._handle)

    def _handle(self) -> None:
        if self._pending:
            with contextlib.suppress(IndexError):
                number = self._pending.pop()
                self._handler(number, None)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
