"""`Lease`: a worker of a pool, lent to one block of code as its executor.

Which thread may touch what. A lease changes under its pool's lock; `_workers` says why that is enough.
"""

import contextlib
import threading
import time
from concurrent.futures import Future, InvalidStateError
from typing import Any

from django_asyncbridge.bridge import _fork
from django_asyncbridge.bridge._work import Work, WorkExecutor
from django_asyncbridge.bridge._worker import Worker
from django_asyncbridge.bridge._workers import WorkerPool, _Changes
from django_asyncbridge.bridge._workers_report import LeaseEndedError

__all__ = ("Lease", "LeaseEndedError")


class Lease(WorkExecutor):
    """A worker of a pool, lent until `give_back` or `shutdown`: one call at a time, in one thread.

    Any thread but the worker's own may use it. The worker comes with the first call; while none is free, calls wait in
    order. After a fork, or if the worker has ended, the next call brings another.

    At its end the worker is given back without being woken, unless it is busy or somebody still has to look after the
    thread (the pool's `on_hand_over`, `look_after_now`): a lease then costs two list operations.

    Args:
        pool: whose workers these are.
        holder: who it is for, in messages of others who wait for a worker.
    """

    __slots__ = (
        "_ended",
        "_hand_over",
        "_pending",
        "_pid",
        "_pool",
        "_worker",
        "holder",
        "waiting_since",
    )

    def __init__(self, pool: WorkerPool, holder: str = "") -> None:
        self.holder = holder
        self.waiting_since = 0.0
        self._pool = pool
        self._worker: Worker | None = None
        self._pending: list[Work] = []
        self._pid = _fork.pid()
        self._ended = False
        # The end of the lease, if that was asked for while calls were left, or if somebody looks after the thread.
        self._hand_over: _HandOver | None = None

    def post(self, work: Work) -> None:
        """Have `work` run in the lease's thread, after what was posted before.

        If no worker becomes free in time, the work fails with `WorkersBusy`.

        Raises:
            RuntimeError: when called from the worker's own thread, which could never run it while its caller
                waits; or `LeaseEndedError` after the lease was given back.
        """
        pool = self._pool
        changes: Any = None
        try:
            with pool._lock:
                worker = self._worker
                if self._ended:
                    raise LeaseEndedError(
                        "no calls are taken after shutdown: the block that this thread was lent to has ended"
                    )
                if worker is not None and worker.alive:
                    if worker.ident == threading.get_ident():
                        raise _own_thread(worker)
                    worker.put(work)
                    return
                changes = _Changes()
                self._wait_for_worker(work, changes)
        finally:
            if changes is not None:
                pool._carry_out(changes)

    def _wait_for_worker(self, work: Work, changes: _Changes) -> None:
        """Keep `work` until there is a worker, and ask for one if that was not done; under the lock."""
        if self._pid != _fork.pid():
            # What waited in the parent waits there.
            self._pending.clear()
            self._pid = _fork.pid()
        try:
            self._pending.append(work)
            if len(self._pending) == 1:
                self._pool._lend_locked(self, changes)
        except BaseException:
            self._interrupted(work)
            raise

    def _interrupted(self, work: Work) -> None:
        """Have the next call ask for a worker if a signal handler kept the first, `work`, from that; under the lock."""
        if self._pending == [work]:
            self._pending.clear()
            with contextlib.suppress(ValueError):
                self._pool._waiting.remove(self)

    def take(self, worker: Worker) -> None:
        """Have the calls that waited run, and the end of the lease if that came meanwhile; under the lock."""
        self._worker = worker
        if self._pool._on_lend is not None:
            worker.put(_Greeting(self._pool))
        for work in self._pending:
            worker.put(work)
        self._pending.clear()
        if self._hand_over is not None:
            self._worker = None
            self._hand_over.put(worker)

    def lose(self) -> list[Work]:
        """Return the calls that wait, which will not get a worker; under the lock."""
        lost = self._pending[:]
        self._pending.clear()
        if self._hand_over is not None:
            self._hand_over.deliver()
        return lost

    def wanted(self) -> bool:
        """Tell whether calls wait that were not withdrawn; under the lock."""
        return any(work.wanted() for work in self._pending)

    def give_back(self) -> "Future[None] | None":
        """End the lease, once the calls it has are done; in any thread, without waiting.

        Returns:
            None if no call is left; otherwise a future that is done when the last is.
        """
        pool = self._pool
        with pool._lock:
            if self._ended:
                return None if self._hand_over is None else self._hand_over.future
            self._ended = True
            worker, self._worker = self._worker, None
            if worker is None or not worker.alive:
                if not self.wanted():
                    self._pending.clear()
                    return None
                self._hand_over = _HandOver()
                return self._hand_over.future
            busy = worker.done != worker.submitted
            if busy or self._has_to_be_looked_after(worker):
                self._hand_over = _HandOver()
                self._hand_over.put(worker)
                worker.returning_since = None if busy else time.monotonic()
                return self._hand_over.future if busy else None
        pool._take_back(worker)
        return None

    def _has_to_be_looked_after(self, worker: Worker) -> bool:
        return self._pool._on_hand_over is not None and worker.looked_after != worker.submitted

    def look_after_now(self) -> None:
        """Have the pool's owner look at the thread already, in what is likely to be the last call of the lease.

        The worker need not be woken for that when it is given back, unless there was another call after this one. To be called
        in the worker's thread; in any other thread it does nothing.
        """
        worker, pool = self._worker, self._pool
        if worker is None or worker.ident != threading.get_ident():
            return
        # What the hook refuses or raises it will say again when the worker is given back.
        if pool._on_hand_over is not None and pool._call_hook(pool._on_hand_over):
            # The number of the call that runs now. Others may be in the queue already, so it is not that of the last.
            with pool._lock:
                worker.looked_after = worker.done + 1

    def has_worker(self) -> bool:
        """Tell whether a call has brought a worker, which the lease still has; in any thread."""
        return self._worker is not None

    def thread_name(self) -> str | None:
        """Return the name of the thread that the lease has at this moment; None if no call has brought it one, in any thread."""
        worker = self._worker
        return None if worker is None else worker.thread.name

    def is_over(self) -> bool:
        """Tell whether the lease was given back; in any thread."""
        return self._ended

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Give the worker back.

        Args:
            wait: block the caller until what was submitted has run.
            cancel_futures: cancel the calls that have not started.
        """
        with self._pool._lock:
            dropped = self._withdraw() if cancel_futures else []
            ended = self.give_back()
        for work in dropped:
            work.drop(None)
        if ended is not None and wait and not self._is_own_thread():
            ended.result()

    def _is_own_thread(self) -> bool:
        worker = None if self._hand_over is None else self._hand_over.worker
        return worker is not None and worker.ident == threading.get_ident()

    def _withdraw(self) -> list[Work]:
        """Take out and return the calls that have not begun; under the lock."""
        taken = self._pending[:]
        self._pending.clear()
        hand_over = self._hand_over
        worker = self._worker if hand_over is None else hand_over.worker
        if worker is not None and worker.alive:
            for work in worker.withdraw():
                if work is hand_over:
                    worker.put(work)
                else:
                    taken.append(work)
        return taken

    def __del__(self) -> None:
        # Of a context that was never left. At the end of the interpreter half of what this needs may be gone.
        with contextlib.suppress(Exception):
            if not self._ended:
                self.give_back()


class _Greeting:
    """The beginning of a lease, as the first piece of work in its worker's queue."""

    __slots__ = ("_pool",)

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    def run(self) -> None:
        """Let the pool's owner look at the thread; in it."""
        self._pool._greet()

    def deliver(self) -> None:
        """Tell nobody: the calls come after it."""

    def drop(self, error: BaseException | None) -> None:
        """Tell nobody: the calls that come after it are dropped as well."""

    def wanted(self) -> bool:
        """Be no reason to wait."""
        return False


class _HandOver:
    """The end of a lease, as the last piece of work in its worker's queue."""

    __slots__ = ("future", "worker")

    def __init__(self) -> None:
        self.future: Future[None] = Future()
        # The worker, until this has come to its turn.
        self.worker: Worker | None = None

    def put(self, worker: Worker) -> None:
        """Have the worker taken back when it has run what it has; under the lock."""
        self.worker = worker
        worker.put(self)

    def run(self) -> None:
        """Give the worker back; in its thread."""
        worker, self.worker = self.worker, None
        assert worker is not None
        worker.pool._hand_over(worker)

    def deliver(self) -> None:
        """Say that the last call is done."""
        # InvalidStateError: whoever waited was cancelled, maybe in this moment.
        with contextlib.suppress(InvalidStateError):
            self.future.set_result(None)

    def drop(self, error: BaseException | None) -> None:
        """Say that there will be no more calls: the worker has died."""
        self.deliver()

    def wanted(self) -> bool:
        """Be done in any case."""
        return True


def _own_thread(worker: Worker) -> RuntimeError:
    return RuntimeError(
        f"a call that must run in {worker.thread.name} would deadlock: that thread is running the event loop "
        "which waits for the call; in sync code, use async_to_sync() instead of asyncio.run()"
    )
