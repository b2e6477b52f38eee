"""`CurrentThreadExecutor`: a thread that waits for async code runs that code's sync work meanwhile.

Theory of operation. `async_to_sync` creates one of these in the calling thread and then waits in
`run_until_future`. Async code below submits its thread-sensitive work to it from the thread of its event loop, and
the calling thread, which would only sleep otherwise, runs it.

Which thread may touch what. `submit` may be called by any thread but the owner's; `run_until_future` by the
owner's only. `_open` changes under `_lock`, and items are put into the queue under the same lock only while it
is true. So the end marker, put there when `_open` turns false, is behind every accepted item: what was
accepted is run before `run_until_future` returns, and what comes later is refused or goes to an outer executor.

After a fork the owner's thread exists in the child only if it was the one that forked; `_epoch` tells
objects from before the fork, and these take no more work.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from django_asyncbridge.bridge import _fork

__all__ = ("CurrentThreadExecutor",)

P = ParamSpec("P")
R = TypeVar("R")


class _WorkItem:
    """One submitted call, run at most once."""

    __slots__ = ("args", "function", "future", "kwargs")

    def __init__(
        self,
        future: "Future[Any]",
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.future = future
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def run(self) -> None:
        __traceback_hide__ = True
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self.function(*self.args, **self.kwargs)
        except BaseException as error:  # noqa: BLE001  # an executor hands everything to whoever asked
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
        finally:
            # The error's traceback refers to this frame; nothing may lead from here back to the error.
            del self


class _ExecutorEndedError(RuntimeError):
    """Neither this `CurrentThreadExecutor` nor one around it takes work any more."""


class _ForkedError(RuntimeError):
    """What this thread waited for exists in the parent process only."""


class CurrentThreadExecutor(Executor):
    """An executor that runs what it is given in the thread that created it, while that thread waits.

    Args:
        old_executor: the executor of an enclosing wait in the same call chain, or None. Work that comes after this
            one has ended goes there.

    Source: ``asgiref.current_thread_executor.CurrentThreadExecutor``.
    """

    def __init__(self, old_executor: "CurrentThreadExecutor | None") -> None:
        self._work_thread = threading.current_thread()
        self._old_executor = old_executor
        self._queue: SimpleQueue[_WorkItem | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._open = True
        self._epoch = _fork.epoch()

    @property
    def old_executor(self) -> "CurrentThreadExecutor | None":
        """The executor of the enclosing wait, if there is one."""
        return self._old_executor

    def run_until_future(self, future: "Future[Any]") -> None:
        """Run submitted work in this thread until `future` is done and nothing is left to run.

        Returns without a result: ask the future. An exception raised in this thread by a signal
        handler, such as KeyboardInterrupt, leaves this method; calling it again with the same future goes on.

        Args:
            future: the one to wait for; another thread completes it.

        Raises:
            RuntimeError: when called from another thread than the one that created the executor.
        """
        self._run_until(future)

    def _run_until(
        self,
        future: "Future[Any]",
        watch: Callable[[], float] | None = None,
    ) -> None:
        """As `run_until_future`, calling `watch` while nothing comes in; it returns the seconds until the next time."""
        if threading.current_thread() is not self._work_thread:
            raise RuntimeError(
                f"run_until_future() must be called in {self._work_thread.name}, where this "
                f"CurrentThreadExecutor was created, not in {threading.current_thread().name}"
            )
        future.add_done_callback(self._close)
        try:
            while True:
                try:
                    item = self._queue.get(timeout=None if watch is None else watch())
                except Empty:
                    continue
                if item is None:
                    # Or the end of an earlier wait, which an interruption ended first.
                    if future.done():
                        return
                    continue
                item.run()
                del item
                if self._epoch != _fork.epoch():
                    raise _ForkedError(
                        "the process was forked inside a sync function that async code waits for, and the "
                        "child returned from it: that code exists in the parent only; leave the child with "
                        "os._exit()"
                    )
        finally:
            # An item's error may become the future's, and its traceback leads to this frame.
            del future, watch

    def _abort(self) -> None:
        """Take no more work and drop what has not been run: its submitters see it cancelled."""
        self._close()
        while True:
            try:
                item = self._queue.get_nowait()
            except Empty:
                return
            if item is not None:
                item.future.cancel()

    def _close(self, future: "Future[Any] | None" = None) -> None:
        with self._lock:
            self._open = False
            self._queue.put(None)

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """Have `function` called in the thread that created this executor, or an enclosing one.

        Returns:
            A future with what the function returns or raises. Cancelling it works until the function starts.

        Raises:
            RuntimeError: when called from the executor's own thread, which could never run it; or when this
                executor and all around it have ended.
        """
        future: Future[R] = Future()
        item = _WorkItem(future, function, args, kwargs)
        if any(executor._accept(item) for executor in self._chain()):
            return future
        raise _ExecutorEndedError(
            "the async_to_sync() call that this work belongs to has ended, and no thread waits for it: "
            "CurrentThreadExecutor already quit or is broken"
        )

    def _accept(self, item: _WorkItem) -> bool:
        if not self._open or self._epoch != _fork.epoch():
            return False
        if threading.current_thread() is self._work_thread:
            raise RuntimeError(
                f"work for {self._work_thread.name} was submitted from that thread itself and could never "
                "run: an event loop was started there, inside a sync function that async code waits for; "
                "use async_to_sync() there instead of asyncio.run()"
            )
        with self._lock:
            if self._open:
                self._queue.put(item)
            return self._open

    def _chain(self) -> "Iterator[CurrentThreadExecutor]":
        """Iterate over this executor and those around it, from the inside out."""
        executor: CurrentThreadExecutor | None = self
        while executor is not None:
            yield executor
            executor = executor._old_executor

    def _nearest_open(self) -> "CurrentThreadExecutor | None":
        """Return the executor, this one or one around it, that `submit` would use; it may end right after."""
        epoch = _fork.epoch()
        return next((one for one in self._chain() if one._open and one._epoch == epoch), None)
