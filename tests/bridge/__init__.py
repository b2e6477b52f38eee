"""One test file for each module of the bridge's core: its stated rules, each interleaving forced.

What they share: an executor whose calls the test runs by hand, event loops that the test turns by hand, and
callers that the test interrupts where it likes.
"""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

#: How long a test waits for another thread that is about to do its part, seconds. Only a failing test takes as long.
LIMIT_SECONDS = 10.0


class ManualExecutor(Executor):
    """An executor that runs a call when the test says so, in the thread that says so."""

    def __init__(self) -> None:
        self.queue: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        future: Future[R] = Future()
        self.queue.append((future, lambda: function(*args, **kwargs)))
        return future

    def run_next(self) -> None:
        """Run the oldest call; nothing happens if it was cancelled."""
        future, function = self.queue.pop(0)
        if future.set_running_or_notify_cancel():
            future.set_result(function())

    def drop_next(self, error: BaseException) -> None:
        """End the oldest call with an error, without having run it, as a broken pool does."""
        self.queue.pop(0)[0].set_exception(error)


class Tracked:
    """An object one can hold a weak reference to."""


class HookedLock:
    """Stands for a lock; does something in the moment in which it is about to be taken."""

    def __init__(self, lock: Any, before: Callable[[], object]) -> None:
        self.lock = lock
        self.before = before

    def __enter__(self) -> bool:
        before, self.before = self.before, lambda: None
        before()
        taken: bool = self.lock.acquire()
        return taken

    def __exit__(self, *exc_info: object) -> None:
        self.lock.release()


def turn(loop: asyncio.AbstractEventLoop, times: int = 1) -> None:
    """Have `loop` run what is ready, and what became ready meanwhile in the next turn."""
    for _ in range(times):
        loop.call_soon(loop.stop)
        loop.run_forever()


@contextlib.contextmanager
def hand_driven_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give a loop that runs only when the test turns it; whatever it complains about fails the test."""
    loop = asyncio.new_event_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
    try:
        yield loop
    finally:
        loop.close()
    assert complaints == []


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Switch the garbage collector off, so that a reference cycle keeps its objects alive."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def wait(event: threading.Event) -> None:
    """Wait for what another thread is about to do."""
    assert event.wait(LIMIT_SECONDS)
