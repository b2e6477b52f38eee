"""`Worker`: one thread of a `WorkerPool`, and `Tenant`, whoever it is lent to.

Which thread may touch what: see `_workers`.
"""

import contextlib
import enum
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Protocol

from django_asyncbridge.bridge import _fork
from django_asyncbridge.bridge._work import Work

if TYPE_CHECKING:
    from django_asyncbridge.bridge._workers import WorkerPool

__all__ = ("Single", "Tenant", "Worker")

# How often a worker that is lent and has nothing to do looks whether that has changed. Not measured.
_LOOKS_SECONDS = 1.0


class Tenant(Protocol):
    """Whoever a worker can be lent to; all of it is called under the pool's lock."""

    holder: str
    waiting_since: float

    def take(self, worker: "Worker") -> None:
        """Put work into the queue of `worker`, which is lent now."""

    def lose(self) -> list[Work]:
        """Return the work that waits and will not get a worker."""

    def wanted(self) -> bool:
        """Tell whether work waits that was not withdrawn."""


class Single:
    """A call that gets a worker for itself."""

    __slots__ = ("holder", "waiting_since", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.holder = ""
        self.waiting_since = 0.0

    def take(self, worker: "Worker") -> None:
        """Have the call run."""
        worker.put(self.work)

    def lose(self) -> list[Work]:
        """Return the call, which will not get a worker."""
        return [self.work]

    def wanted(self) -> bool:
        """Tell whether the call was not withdrawn."""
        return self.work.wanted()


class _Told(enum.Enum):
    """What a worker finds in its queue beside work."""

    END = enum.auto()
    WAKE = enum.auto()


class Worker:
    """One thread of a pool."""

    __slots__ = (
        "alive",
        "done",
        "holder",
        "ident",
        "lent_at",
        "looked_after",
        "pool",
        "queue",
        "returning_since",
        "single",
        "submitted",
        "thread",
    )

    def __init__(self, pool: "WorkerPool", number: int) -> None:
        self.pool = pool
        self.queue: SimpleQueue[Work | _Told] = SimpleQueue()
        self.alive = True
        self.ident = 0
        self.submitted = 0
        self.done = 0
        # Not the tenant itself: a lease that nobody refers to any more has to go, and give its worker back.
        self.holder = ""
        self.single = False
        # The number of the call after which the owner of the pool need not look at the thread again.
        self.looked_after = -1
        # Since when all that is left of a lease is to hand the worker over.
        self.returning_since: float | None = None
        self.lent_at = 0.0
        self.thread = threading.Thread(
            target=self._serve, name=f"asyncbridge-{pool.name}-{number}", daemon=True
        )

    def put(self, work: Work) -> None:
        """Have `work` run after what was put before; under the pool's lock."""
        self.submitted += 1
        self.queue.put(work)

    def end(self) -> None:
        """Have the thread end when it has nothing more to run; in any thread."""
        self.queue.put(_Told.END)

    def wake(self) -> None:
        """Have the thread look at `alive` and at its pool's idle time again; in any thread."""
        self.queue.put(_Told.WAKE)

    def join(self) -> None:
        """Wait for the end of the thread, once it was told to end; in any other thread."""
        # Another thread may be about to start it; if that fails, it is forgotten. A thread that has an ident may not be
        # joined yet, one that has told the worker's may.
        while not self.ident and self in self.pool._workers:
            time.sleep(0.001)
        if self.ident:
            self.thread.join()

    def withdraw(self) -> list[Work]:
        """Take out and return what has not begun; under the pool's lock."""
        taken: list[Work] = []
        ending = False
        # The worker takes from the same queue.
        with contextlib.suppress(Empty):
            while True:
                found = self.queue.get_nowait()
                if found is _Told.END:
                    ending = True
                elif found is not _Told.WAKE:
                    taken.append(found)
        if ending:
            self.end()
        self.submitted -= len(taken)
        return taken

    def _patience(self, quiet: bool) -> float | None:
        """Return how long to wait for work, seconds; not too short while the worker is lent and nobody needs it."""
        idle_seconds = self.pool.idle_seconds
        return (
            max(idle_seconds, _LOOKS_SECONDS)
            if quiet and idle_seconds is not None
            else idle_seconds
        )

    def _serve(self) -> None:
        pool, queue, epoch = self.pool, self.queue, _fork.epoch()
        self.ident = threading.get_ident()
        work: Work | None = None
        ending = quiet = False
        try:
            while self.alive:
                try:
                    found = queue.get(timeout=self._patience(quiet))
                except Empty:
                    quiet = True
                    pool._retire_if_idle(self)
                    continue
                quiet = False
                if found is _Told.END:
                    ending = True
                elif found is not _Told.WAKE:
                    work, found = found, _Told.WAKE
                    single = self.single
                    if single:
                        pool._greet()
                    work.run()
                    if epoch != _fork.epoch():
                        raise _left_in_child()
                    self.done += 1
                    if single:
                        pool._hand_over(self)
                    work.deliver()
                    work = None
                if ending:
                    pool._retire_if_empty(self)
        finally:
            # In a child that was forked here nothing is this thread's any more.
            if epoch == _fork.epoch():
                pool._ended(self, work)


def _left_in_child() -> RuntimeError:
    return RuntimeError(
        "the process was forked inside a sync function that async code waits for, and the child returned from "
        "it: that code exists in the parent only; leave the child with os._exit()"
    )
