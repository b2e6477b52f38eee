"""What the tests of the worker pool share: pools that end with their block, and calls that end when told."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, NoReturn

from django_asyncbridge.bridge._work import Work
from django_asyncbridge.bridge._workers import WorkerPool
from tests.bridge import LIMIT_SECONDS, wait
from tests.support import run_in_thread


@contextlib.contextmanager
def new_pool(**options: Any) -> Iterator[WorkerPool]:
    """Give a pool, and end its workers; no thread of it is left."""
    pool = WorkerPool("testing", **options)
    yield pool
    run_in_thread(pool.shutdown, LIMIT_SECONDS)


class Busy:
    """A call that has begun and keeps a thread of `executor` busy until `end`."""

    def __init__(self, executor: Executor) -> None:
        self._begun, self._release = threading.Event(), threading.Event()
        self.future: Future[threading.Thread] = executor.submit(self._run)
        wait(self._begun)

    def _run(self) -> threading.Thread:
        self._begun.set()
        wait(self._release)
        return threading.current_thread()

    def release(self) -> None:
        """Let the call go on, without waiting for its end."""
        self._release.set()

    def end(self) -> threading.Thread:
        """Let the call end and return its thread, which is free again by then."""
        self.release()
        return self.future.result(LIMIT_SECONDS)


def thread_of(executor: Executor) -> threading.Thread:
    """Return the thread in which a call runs now."""
    return executor.submit(threading.current_thread).result(LIMIT_SECONDS)


def ended(thread: threading.Thread) -> bool:
    """Wait for the end of a thread that is about to end."""
    thread.join(LIMIT_SECONDS)
    return not thread.is_alive()


def must_not_run() -> NoReturn:
    raise AssertionError("it ran")


class Piece(Work):
    """A piece of work that writes down what is done with it.

    Args:
        on_run: called in `run`; what it raises gets through to the worker.
        on_deliver: the same in `deliver`.
    """

    def __init__(
        self,
        on_run: Callable[[], object] = lambda: None,
        on_deliver: Callable[[], object] = lambda: None,
    ) -> None:
        self.on_run = on_run
        self.on_deliver = on_deliver
        self.is_wanted = True
        self.dropped: list[BaseException | None] = []
        self.delivered = threading.Event()
        self.over = threading.Event()

    def run(self) -> None:
        self.on_run()

    def deliver(self) -> None:
        self.on_deliver()
        self.delivered.set()
        self.over.set()

    def drop(self, error: BaseException | None) -> None:
        self.dropped.append(error)
        self.over.set()

    def wanted(self) -> bool:
        return self.is_wanted
