"""A deadline for a block of code, as a plain ``with`` or an ``async with``. Deprecated.

`asyncio.timeout` does the same and more; this stands for code that still imports the old name.

How a deadline works: when it passes, the task is cancelled, and on the way out of the block that
cancellation is taken back (`asyncio.Task.uncancel`) and turned into TimeoutError. A task counts its
cancellations; so if anybody else asked for one meanwhile, the count stays above what it was on the way in,
and the CancelledError goes on.
"""

import asyncio
import warnings
from types import TracebackType
from typing import Any, Self

__all__ = ("timeout",)


class timeout:  # noqa: N801  (the inherited name)
    """Raise TimeoutError from a block that takes longer than it may.

    Deprecated: use `asyncio.timeout`. Constructing it emits a DeprecationWarning.

    To be constructed where an event loop runs, and entered in the task that is to be limited, as
    ``with`` or ``async with``; neither form waits. Not for use from other threads. An object may be
    used again after the block, but not inside it.

    Cancellation: when the deadline passes, the block sees CancelledError; outside it becomes
    TimeoutError, and the task counts as not cancelled. A cancellation by somebody else goes through
    as CancelledError, also when it comes together with the deadline.

    Args:
        timeout: Seconds the block may take. Zero or less ends it at its first wait. None: no limit.
        loop: Deprecated, with a warning of its own: the event loop that runs. Leave it out.

    Raises:
        RuntimeError: No event loop runs in this thread; or, on entering with a limit, the caller is
            not a task of that loop or is in the block already.
        TimeoutError: On leaving, the deadline has passed.

    Source: asyncio documentation, "Timeouts" and "Task.uncancel".
    """

    def __init__(
        self, timeout: float | None, *, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        warnings.warn(
            "django_asyncbridge.bridge.timeout.timeout is deprecated. Use asyncio.timeout() instead.",
            DeprecationWarning,
            stacklevel=2,
        )
        if loop is None:
            loop = asyncio.get_running_loop()
        else:
            warnings.warn(
                "The loop argument of django_asyncbridge.bridge.timeout.timeout is deprecated. "
                "Leave it out: the running loop is used.",
                DeprecationWarning,
                stacklevel=2,
            )
        self._timeout = timeout
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._cancelling_before = 0
        self._deadline: float | None = None
        self._timer: asyncio.Handle | None = None
        self._expired = False

    @property
    def expired(self) -> bool:
        """Whether the deadline passed while the block ran."""
        return self._expired

    @property
    def remaining(self) -> float | None:
        """Seconds until the deadline, 0.0 once it has passed; None before entering and without a limit."""
        if self._deadline is None:
            return None
        return max(self._deadline - self._loop.time(), 0.0)

    def __enter__(self) -> Self:
        if self._timeout is not None:
            self._start(self._timeout)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._expired:
            return
        # First take back our own cancellation, whatever the block ended with: left in the count, it
        # would make the next TaskGroup or timeout of this task believe it is being cancelled.
        ours_alone = task.uncancel() <= self._cancelling_before
        if ours_alone and isinstance(exc_val, asyncio.CancelledError):
            raise TimeoutError from exc_val

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc_val, exc_tb)

    def _start(self, seconds: float) -> None:
        if self._task is not None:
            raise RuntimeError("This timeout has been entered already. Make one for each block.")
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError(
                "A timeout is entered inside a task of its event loop. None runs here."
            )
        self._task = task
        self._cancelling_before = task.cancelling()
        self._expired = False
        self._deadline = self._loop.time() + seconds
        if seconds > 0:
            self._timer = self._loop.call_at(self._deadline, self._expire, task)
        else:
            self._timer = self._loop.call_soon(self._expire, task)

    def _expire(self, task: "asyncio.Task[Any]") -> None:
        self._timer = None
        self._expired = True
        task.cancel()
