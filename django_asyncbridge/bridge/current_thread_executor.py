"""`CurrentThreadExecutor`: a thread that waits for async code runs that code's sync work meanwhile.

Theory of operation. `async_to_sync` creates one of these in the calling thread and then waits in
`run_until_future`. Async code below submits its thread-sensitive work to it from the thread of its event loop, and
the calling thread, which would only sleep otherwise, runs it.

The owner's thread may itself run the event loop, as long as that does without it (`_own_loop`). Work that comes from there
goes to the executor of that wait, and the loop moves to another thread: `_hosted` says whom to ask.

Which thread may touch what. `post` and `submit` may be called by any thread; `run_until_future` by the owner's only. `_open`
changes under `_lock`, and work is put into the queue under the same lock only while it is true. So the end
marker, put there when `_open` turns false, is behind all accepted work: what was accepted is run before
`run_until_future` returns, and what comes later is refused or goes to an outer executor.

After a fork the owner's thread exists in the child only if it was the one that forked; `_epoch` tells
objects from before the fork, and these take no more work.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from django_asyncbridge.bridge import _fork
from django_asyncbridge.bridge._work import Work, WorkExecutor

__all__ = ("CurrentThreadExecutor",)


class _ExecutorEndedError(RuntimeError):
    """Neither this `CurrentThreadExecutor` nor one around it takes work any more."""


class _ForkedError(RuntimeError):
    """What this thread waited for exists in the parent process only."""


class _Host(Protocol):
    """A wait in `async_to_sync` whose event loop runs in the waiting thread."""

    executor: "CurrentThreadExecutor"

    def move(self) -> None:
        """Have another thread run the loop, so that this one can serve the executor; in this thread."""

    def move_soon(self) -> None:
        """Have `move` called in the thread that runs the loop; in any other thread."""


class _Hosted(threading.local):
    host: _Host | None = None


# The wait whose event loop this thread runs now, if any.
_hosted = _Hosted()


class CurrentThreadExecutor(WorkExecutor):
    """An executor that runs what it is given in the thread that created it, while that thread waits.

    Args:
        old_executor: the executor of an enclosing wait in the same call chain, or None. Work that comes after this
            one has ended goes there.

    Source: ``asgiref.current_thread_executor.CurrentThreadExecutor``.
    """

    def __init__(self, old_executor: "CurrentThreadExecutor | None") -> None:
        self._work_thread = threading.current_thread()
        self._ident = threading.get_ident()
        self._old_executor = old_executor
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        # Finalizers and signal handlers run anywhere, so the thread that has it may need it again.
        self._lock = threading.RLock()
        self._open = True
        self._epoch = _fork.epoch()
        # Whoever runs an event loop in this thread instead of serving the queue; under the lock.
        self._host: _Host | None = None

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
        self._check_thread()
        future.add_done_callback(self._close)
        try:
            self._serve(future.done)
        finally:
            # The error of some work may become the future's, and its traceback leads to this frame.
            del future

    def _serve(
        self,
        done: Callable[[], bool],
        watch: Callable[[], float] | None = None,
        watch_seconds: float | None = None,
    ) -> None:
        """Run work until the end marker comes and `done` is true, calling `watch` while nothing comes in.

        Args:
            done: tells whether to end; what makes it true calls `_close`.
            watch: returns the seconds until it wants to be called again, at the latest.
            watch_seconds: when to call it first.
        """
        try:
            while True:
                try:
                    work = self._queue.get(timeout=watch_seconds)
                except Empty:
                    if watch is not None:
                        watch_seconds = watch()
                    continue
                if work is None:
                    # Or the end of an earlier wait, which an interruption ended first.
                    if done():
                        return
                    continue
                _run(work)
                del work
                if self._epoch != _fork.epoch():
                    raise _ForkedError(
                        "the process was forked inside a sync function that async code waits for, and the "
                        "child returned from it: that code exists in the parent only; leave the child with "
                        "os._exit()"
                    )
        finally:
            del done, watch

    def _check_thread(self) -> None:
        if threading.current_thread() is not self._work_thread:
            raise RuntimeError(
                f"run_until_future() must be called in {self._work_thread.name}, where this "
                f"CurrentThreadExecutor was created, not in {threading.current_thread().name}"
            )

    def _abort(self) -> None:
        """Take no more work and drop what has not been run: its submitters see it cancelled."""
        with self._lock:
            self._open = False
        if not self._queue.empty():
            self._refuse(None)

    def _refuse(self, error: BaseException | None) -> None:
        """Fail the work that was accepted, as cancelled for None: nobody will run it."""
        while not self._queue.empty():
            work = self._queue.get()
            if work is not None:
                work.drop(error)

    def _close(self, future: object = None) -> None:
        with self._lock:
            self._open = False
            self._queue.put(None)

    def post(self, work: Work) -> None:
        """Have `work` run in the thread that created this executor, or an enclosing one.

        Raises:
            RuntimeError: when called from the executor's own thread, which could never run it; or when this
                executor and all around it have ended.
        """
        if self._accept(work):
            return
        executor = self._old_executor
        while executor is not None:
            if executor._accept(work):
                return
            executor = executor._old_executor
        raise _ExecutorEndedError(
            "the async_to_sync() call that this work belongs to has ended, and no thread waits for it: "
            "CurrentThreadExecutor already quit or is broken"
        )

    def _accept(self, work: Work) -> bool:
        if not self._open or self._epoch != _fork.epoch():
            return False
        if threading.get_ident() == self._ident:
            self._accept_from_own_thread(work)
            return True
        return self._accept_from_elsewhere(work)

    def _accept_from_elsewhere(self, work: Work) -> bool:
        with self._lock:
            if not self._open:
                return False
            self._queue.put(work)
            host = self._host
        if host is not None:
            # From another loop or thread: the one that waits runs its loop, and does not look at the queue.
            host.move_soon()
        return True

    def _begin_hosting(self, host: "_Host") -> bool:
        """Take note that this thread runs a loop from now on; False if there is work, which comes first."""
        with self._lock:
            self._host = host if self._queue.empty() else None
            return self._host is not None

    def _end_hosting(self) -> None:
        with self._lock:
            self._host = None

    def _accept_from_own_thread(self, work: Work) -> None:
        host = _hosted.host
        if host is None:
            raise RuntimeError(
                f"work for {self._work_thread.name} was submitted from that thread itself and could never "
                "run: an event loop was started there, inside a sync function that async code waits for; "
                "use async_to_sync() there instead of asyncio.run()"
            )
        host.move()
        host.executor._queue.put(work)

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


def _run(work: Work) -> None:
    """Run `work` and deliver it, whatever happens."""
    __traceback_hide__ = True
    try:
        work.run()
        work.deliver()
    except BaseException as interruption:
        # A signal handler's, before or after the function itself: nobody must wait for ever for what it cut off.
        work.drop(interruption)
        raise
    finally:
        del work
