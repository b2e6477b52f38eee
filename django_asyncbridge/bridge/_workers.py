"""`Worker`: one thread that runs one call at a time.

Which thread may touch what. Any thread may call `submit` and `shutdown`: the pool inside has its own lock. The
worker's thread enters itself in `_threads` once, before its first call, so that thread always finds itself there. After a fork the
pool is a dead copy; every worker is set up anew before the child's only thread goes on.
"""

import itertools
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from django_asyncbridge.bridge import _fork

__all__ = ("Worker",)

P = ParamSpec("P")
R = TypeVar("R")

_numbers = itertools.count(1)
_workers: "weakref.WeakSet[Worker]" = weakref.WeakSet()


class Worker(Executor):
    """An executor with one thread, started by the first call and named after its use.

    Args:
        use: what the thread is for, one word; its name is ``asyncbridge-<use>-<n>``.
    """

    def __init__(self, use: str) -> None:
        self._use = use
        self._set_up()
        _workers.add(self)

    def _set_up(self) -> None:
        # A list for the thread to enter itself: a method as initializer would keep the worker alive.
        self._threads: list[threading.Thread] = []
        self._pool = ThreadPoolExecutor(
            1, initializer=_enter_thread, initargs=(self._use, self._threads)
        )

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """Have `function` called in the worker's thread, after what was submitted before.

        Raises:
            RuntimeError: when called from the worker's own thread, which could never run it while its caller
                waits; or after `shutdown`, or while the interpreter shuts down.
        """
        if threading.current_thread() in self._threads:
            raise RuntimeError(
                f"a call that must run in {threading.current_thread().name} would deadlock: that thread is "
                "running the event loop which waits for the call; in sync code, use async_to_sync() "
                "instead of asyncio.run()"
            )
        return self._pool.submit(function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the thread once it has run what was submitted.

        Args:
            wait: block the caller until the thread has ended.
            cancel_futures: cancel the calls that have not started.
        """
        self._pool.shutdown(wait=wait, cancel_futures=cancel_futures)


def _enter_thread(use: str, threads: list[threading.Thread]) -> None:
    thread = threading.current_thread()
    thread.name = f"asyncbridge-{use}-{next(_numbers)}"
    threads.append(thread)


def _set_up_after_fork() -> None:
    for worker in list(_workers):
        worker._set_up()


_fork.on_fork(_set_up_after_fork)
