"""`Children` and `Hold`: what a running sync function waits for, and what it keeps from others.

Which thread may touch what. Tasks enter and leave `Children` in the thread of their loop, a cancellation comes from the loop that
waits for the function, and the function asks in its own thread: all of it is under `_children_lock`, but for
`cancelled`, which only ever turns true. A `Hold` is given back by the thread that has the call.
"""

import asyncio
import contextlib
import threading
from typing import Any

from django_asyncbridge.bridge import _fork

__all__ = ("Children", "Hold")


class Hold:
    """Stands for a call that holds the process's shared thread; false once it does not."""

    __slots__ = ("_pid", "active", "caller")

    def __init__(self, caller: str) -> None:
        self.active = True
        self.caller = caller
        self._pid = _fork.pid()

    def __bool__(self) -> bool:
        return self.active and self._pid == _fork.pid()


# Of all `Children`: it is held for a moment only, and seldom. The thread that has it may take it again, for finalizers.
_children_lock = threading.RLock()


class Children(list["asyncio.Task[Any]"]):
    """The tasks that a running sync function waits for in `async_to_sync`, and its pending cancellation.

    Tasks add and remove themselves in the thread of their loop, which need not be the caller's. A cancellation is on its way until
    that loop has turned; it may stop before that, with the task's end. So the task takes what is on its way along when
    it leaves, for the next one.

    Attributes:
        cancelled: whether the task that waits for the sync function has been cancelled; any thread may read it.
    """

    __slots__ = ("_cancel_due", "_known", "_on_the_way", "_requests", "cancelled")

    def __init__(self) -> None:
        self.cancelled = self._cancel_due = False
        # How often the task was cancelled, and of how many of these the function knows.
        self._requests = self._known = 0
        # The latest cancellation that each task's loop has been told of and has not carried out.
        self._on_the_way: dict[asyncio.Task[Any], int] | None = None

    def join(self, task: "asyncio.Task[Any]") -> bool:
        """Add the current task.

        Returns:
            True if a cancellation has found nobody to go to before: then it is this task's.
        """
        with _children_lock:
            super().append(task)
            due, self._cancel_due = self._cancel_due, False
        return due

    def append(self, task: "asyncio.Task[Any]") -> None:
        """Add the current task, as asgiref does; a cancellation that is due cancels it."""
        if self.join(task):
            task.cancel()

    def remove(self, task: "asyncio.Task[Any]") -> None:
        """Take a task out that has ended."""
        with _children_lock:
            super().remove(task)
            request = self._arrived(task)
            if request > self._known:
                self._pass_on(request)

    def cancel(self) -> None:
        """Cancel the tasks that are waited for now, or else the next one."""
        with _children_lock:
            self.cancelled = True
            self._requests += 1
            self._pass_on(self._requests)

    def _pass_on(self, request: int) -> None:
        self._cancel_due = not self
        if self and self._on_the_way is None:
            self._on_the_way = {}
        for task in self:
            assert self._on_the_way is not None
            self._on_the_way[task] = request
            # RuntimeError: its loop is closed, and the task has not left: it never will, nor would the function go on.
            with contextlib.suppress(RuntimeError):
                task.get_loop().call_soon_threadsafe(self._cancel_task, task)

    def _arrived(self, task: "asyncio.Task[Any]") -> int:
        """Return the cancellation that was on its way to `task`, or 0; under the lock."""
        return 0 if self._on_the_way is None else self._on_the_way.pop(task, 0)

    def _cancel_task(self, task: "asyncio.Task[Any]") -> None:
        with _children_lock:
            if self._arrived(task):
                # It has not left, so it has not ended.
                task.cancel()

    def note(self) -> None:
        """Take note that the sync function knows of its cancellation: its clean-up may wait for tasks again."""
        with _children_lock:
            self._known = self._requests
            self._cancel_due = False
