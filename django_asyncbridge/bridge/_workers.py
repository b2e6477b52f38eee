"""`WorkerPool`: threads that are used again.

Theory of operation. A worker is a thread with a queue of its own. A pool lends its workers to tenants: to a `_leases.Lease` for as
long as that lasts, or for a single call (`WorkerPool.submit`). The worker given back last is lent first: its caches and
connections are the warmest, and the others can idle out. If all are lent and there may be no more of them, tenants
wait in order, not longer than the pool's limit.

Which thread may touch what. A pool, its workers and its tenants change under the pool's `_lock`, except that `Worker.done`
is written by the worker's thread only, before a caller hears of the outcome. So ``done == submitted``, read under the lock,
means that the worker runs nothing of its tenant's. Work is put into a worker's queue under the lock, and only while
the worker is lent to the one who puts it there; a worker ends (`alive` turns false) under the lock, and only
while its queue is empty. So nothing is lost, and nothing reaches somebody else's worker. The thread that has the lock may take it
again, since finalizers run anywhere; it is not held while foreign code runs or a thread starts.

Limits may change at any time (`configure`); whoever is lent a worker keeps it.

At interpreter shutdown workers finish what they have and are joined. A forked child has none.
"""

import atexit
import itertools
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context

from django_asyncbridge.bridge import _fork
from django_asyncbridge.bridge._work import Work, WorkExecutor
from django_asyncbridge.bridge._worker import Single, Tenant, Worker
from django_asyncbridge.bridge._workers_report import (
    WorkerPoolStatistics,
    WorkersBusy,
    check_limits,
)
from django_asyncbridge.bridge._workers_watch import SOON_SECONDS, watch_waiting

__all__ = ("WorkerPool", "WorkerPoolStatistics", "WorkersBusy")

# How long a worker is kept when nobody needs it: through a lull between two requests. Not measured.
_IDLE_SECONDS = 60.0

logger = logging.getLogger("django_asyncbridge.bridge.sync")

_pools: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()


class WorkerPool(WorkExecutor):
    """Workers that are lent, to leases and for single calls, and used again.

    Any thread may use it. The hooks run in the worker's thread, in the context the thread was started in; what they raise is logged.
    `configure` and `look_after` change limits and hooks later.

    Args:
        name: what its threads are for, one word; they are named ``asyncbridge-<name>-<n>``.
        maximum: how many workers there may be at once; None for any number.
        idle_seconds: a worker that was not needed for so long ends; None to keep it.
        wait_seconds: how long a lease or a call may wait for a worker; None for ever.
        on_lend: called before the first call of each lease, and before each single call.
        on_hand_over: called whenever a worker has been given back, so also after each single call, before it is lent again. If it returns False or raises, the
            worker ends, and another is started when one is needed.
        on_retire: called when a worker's thread is about to end.

    Raises:
        ValueError: for a maximum below one or a negative time.
    """

    def __init__(
        self,
        name: str,
        *,
        maximum: int | None = None,
        idle_seconds: float | None = _IDLE_SECONDS,
        wait_seconds: float | None = None,
        on_lend: Callable[[], object] | None = None,
        on_hand_over: Callable[[], object] | None = None,
        on_retire: Callable[[], object] | None = None,
    ) -> None:
        check_limits(maximum, idle_seconds, wait_seconds)
        self.name = name
        self.maximum = maximum
        self.idle_seconds = idle_seconds
        self.wait_seconds = wait_seconds
        self.look_after(on_lend=on_lend, on_hand_over=on_hand_over, on_retire=on_retire)
        self._numbers = itertools.count(1)
        self._started = self._retired = self._lent = self._expired = 0
        self._longest_wait = 0.0
        self._set_up()
        _pools.add(self)

    def _set_up(self) -> None:
        self._lock = threading.RLock()
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []
        self._waiting: deque[Tenant] = deque()
        self._watch: threading.Thread | None = None
        self._watch_wake = threading.Event()
        self._closed = False

    def look_after(
        self,
        *,
        on_lend: Callable[[], object] | None = None,
        on_hand_over: Callable[[], object] | None = None,
        on_quiet: Callable[[], object] | None = None,
        on_retire: Callable[[], object] | None = None,
    ) -> None:
        """Change the hooks; workers come to them from their next call on.

        Args:
            on_lend: see the class.
            on_hand_over: see the class.
            on_quiet: called in a worker that is lent to a lease and had nothing to do for the pool's idle time.
            on_retire: see the class.
        """
        self._on_lend = on_lend
        self._on_hand_over = on_hand_over
        self._on_quiet = on_quiet
        self._on_retire = on_retire

    def configure(
        self, *, maximum: int | None, idle_seconds: float | None, wait_seconds: float | None
    ) -> None:
        """Change the limits, for those who wait now as well. Workers beyond the maximum end when they are given back.

        Raises:
            ValueError: for a maximum below one or a negative time; nothing is changed then.
        """
        check_limits(maximum, idle_seconds, wait_seconds)
        changes = _Changes()
        with self._lock:
            self.maximum, self.wait_seconds = maximum, wait_seconds
            self._set_idle_seconds(idle_seconds)
            while self._idle and self._is_crowded():
                self._send_away(self._idle.pop(0))
            self._match(changes)
            # It sleeps until the end of the time that was the limit.
            self._watch_wake.set()
        self._carry_out(changes)

    def _set_idle_seconds(self, idle_seconds: float | None) -> None:
        """Change how long workers wait for work, those who wait now as well; under the lock."""
        if idle_seconds != self.idle_seconds:
            self.idle_seconds = idle_seconds
            for worker in self._workers:
                worker.wake()

    def _is_crowded(self) -> bool:
        """Tell whether there are more workers than there may be; under the lock."""
        return self.maximum is not None and sum(one.alive for one in self._workers) > self.maximum

    def _send_away(self, worker: Worker) -> None:
        """Have a worker end that is lent to nobody; under the lock."""
        worker.alive = False
        worker.wake()

    def post(self, work: Work) -> None:
        """Have `work` run by a worker of its own.

        If no worker becomes free in time, the work fails with `WorkersBusy`.

        Raises:
            RuntimeError: after `shutdown`.
        """
        self._lend(Single(work))

    def is_exhausted(self) -> bool:
        """Tell whether the next call would have to wait for a worker."""
        return self.maximum is not None and not self._idle and len(self._workers) >= self.maximum

    def owns(self, thread: threading.Thread) -> bool:
        """Tell whether `thread` is that of one of the workers."""
        with self._lock:
            return any(worker.thread is thread for worker in self._workers)

    def statistics(self) -> WorkerPoolStatistics:
        """Return what the pool is doing now."""
        with self._lock:
            return WorkerPoolStatistics(
                name=self.name,
                maximum=self.maximum,
                workers=len(self._workers),
                idle=len(self._idle),
                waiting=len(self._waiting),
                started=self._started,
                retired=self._retired,
                lent=self._lent,
                expired=self._expired,
                longest_wait_seconds=self._longest_wait,
            )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more single calls, and end the workers when they have run what they have.

        Args:
            wait: block the caller until the threads have ended; not in one of these threads.
            cancel_futures: cancel the calls that wait for a worker.
        """
        with self._lock:
            self._closed = True
            cancelled = [one for one in self._waiting if cancel_futures and type(one) is Single]
            for single in cancelled:
                self._waiting.remove(single)
        _drop(cancelled, None)
        self._end_workers(wait)

    def _end_workers(self, wait: bool) -> None:
        waiting = True
        while waiting:
            with self._lock:
                workers = tuple(self._workers)
                waiting = bool(workers and self._waiting)
            for worker in workers:
                worker.end()
            if not wait or self.owns(threading.current_thread()):
                return
            for worker in workers:
                worker.join()
            # Those who waited have got workers meanwhile.

    # --- Lending ---------------------------------------------------------------

    def _lend(self, tenant: Tenant) -> None:
        """Give `tenant` a worker: an idle one, a new one, or later the first that becomes free."""
        changes = _Changes()
        try:
            with self._lock:
                self._lend_locked(tenant, changes)
        finally:
            self._carry_out(changes)

    def _lend_locked(self, tenant: Tenant, changes: "_Changes") -> None:
        if self._closed and type(tenant) is Single:
            raise RuntimeError(f"the pool of {self.name} workers takes no calls after shutdown")
        if self._idle and not self._waiting:
            self._give(self._idle.pop(), tenant)
        else:
            tenant.waiting_since = time.monotonic()
            self._waiting.append(tenant)
            self._match(changes, tenant)

    def _match(self, changes: "_Changes", newcomer: Tenant | None = None) -> None:
        """Give workers to those who wait, as long as there are any; under the lock."""
        while self._waiting:
            tenant = self._waiting[0]
            if not tenant.wanted():
                changes.lost.append(self._waiting.popleft())
            elif self._idle or self._may_start_for(len(self._waiting)):
                worker = self._idle.pop() if self._idle else self._new_worker(changes)
                self._waiting.popleft()
                if tenant is not newcomer:
                    seconds = time.monotonic() - tenant.waiting_since
                    self._longest_wait = max(self._longest_wait, seconds)
                self._give(worker, tenant)
            else:
                changes.watch = self._watch is None
                return

    def _may_start_for(self, waiting: int) -> bool:
        """Tell whether to start a worker for the last of so many tenants; under the lock.

        Not if one is on its way back, with nothing left to do but to be handed over: it is warm, and comes sooner,
        unless its hook takes long.
        """
        return not self._is_full() and waiting > self._count_returning()

    def _is_full(self) -> bool:
        """Tell whether there may be no more workers; under the lock."""
        return self.maximum is not None and len(self._workers) >= self.maximum

    def _count_returning(self) -> int:
        """Return how many workers will be free in a moment; under the lock."""
        soon = time.monotonic() - SOON_SECONDS
        since = (worker.returning_since for worker in self._workers)
        return sum(one is not None and one > soon for one in since)

    def _give(self, worker: Worker, tenant: Tenant) -> None:
        self._lent += 1
        worker.holder = tenant.holder
        worker.single = type(tenant) is Single
        worker.lent_at = time.monotonic()
        tenant.take(worker)

    def _new_worker(self, changes: "_Changes") -> Worker:
        worker = Worker(self, next(self._numbers))
        self._workers.add(worker)
        changes.started.append(worker)
        self._started += 1
        return worker

    def _carry_out(self, changes: "_Changes") -> None:
        """Do what must not be done under the lock."""
        interruption: BaseException | None = None
        while changes.started:
            worker = changes.started.pop(0)
            try:
                # In an empty context: on some builds a thread inherits its creator's.
                Context().run(worker.thread.start)
            except BaseException as error:  # noqa: BLE001  # a signal handler's; raised below
                self._start_failed(worker, error, changes)
                # The work knows of the other kind: no thread can start any more (interpreter shutdown, a limit).
                if not isinstance(error, RuntimeError):
                    interruption = error
        lost, changes.lost = changes.lost, []
        _drop(lost, None)
        if changes.watch:
            self._watch_waiting()
        if interruption is not None:
            raise interruption

    def _start_failed(self, worker: Worker, error: BaseException, changes: "_Changes") -> None:
        if not isinstance(error, RuntimeError):
            error = RuntimeError(f"the start of {worker.thread.name} was interrupted")
        with self._lock:
            failed = self._strike_out(worker)
            # It may have come up before the interruption.
            worker.end()
            # Those who wait get a try of their own each: nobody else may be left to serve them.
            self._match(changes)
        for work in failed:
            work.drop(error)

    def _watch_waiting(self) -> None:
        watch_waiting(self)

    def _match_late(self) -> None:
        """Start workers for those who waited for one that was to come soon; in the watch."""
        changes = _Changes()
        with self._lock:
            self._match(changes)
            changes.watch = False
        self._carry_out(changes)

    # --- Giving back -----------------------------------------------------------

    def _hand_over(self, worker: Worker) -> None:
        """Take a worker back, or have it end if the hook says so; in the worker's thread."""
        if self._call_hook(self._on_hand_over):
            self._take_back(worker)
        else:
            # Nobody waits for it any more: `_ended` starts another.
            worker.alive, worker.returning_since = False, None

    def _greet(self) -> None:
        """Let the pool's owner look at the thread before somebody uses it; in it."""
        if self._on_lend is not None:
            self._call_hook(self._on_lend)

    def _call_hook(self, hook: Callable[[], object] | None) -> bool:
        """Call a hook; False if it returns that or raises."""
        if hook is None:
            return True
        try:
            return hook() is not False
        except BaseException:  # whatever it is, it must not take the worker's calls along
            logger.exception("a hook of the pool %r raised", self.name)
            return False

    def _take_back(self, worker: Worker) -> None:
        """Lend a free worker to the first who waits, or keep it; in any thread."""
        changes = _Changes()
        with self._lock:
            worker.holder, worker.single, worker.returning_since = "", False, None
            # It may have ended a moment ago, told by `shutdown`.
            if worker.alive and self._is_crowded():
                self._send_away(worker)
            elif worker.alive:
                self._idle.append(worker)
            if self._waiting:
                self._match(changes)
        if changes:
            self._carry_out(changes)

    def _retire_if_idle(self, worker: Worker) -> None:
        """End a worker that is lent to nobody, or tell that a lease is quiet; in its thread."""
        with self._lock:
            if worker in self._idle:
                self._idle.remove(worker)
                worker.alive = False
        if worker.alive:
            self._call_hook(self._on_quiet)

    def _retire_if_empty(self, worker: Worker) -> None:
        with self._lock:
            if worker.queue.empty():
                worker.alive = False
                if worker in self._idle:
                    self._idle.remove(worker)

    def _ended(self, worker: Worker, work: Work | None) -> None:
        """Let go of a worker, and of what it was about to do; in its thread, at its end."""
        self._call_hook(self._on_retire)
        changes = _Changes()
        with self._lock:
            left = [work] if work is not None else []
            left += self._strike_out(worker)
            self._retired += 1
            self._match(changes)
        error = RuntimeError(f"{worker.thread.name} was ended from outside")
        for one in left:
            one.drop(error)
        self._carry_out(changes)

    def _strike_out(self, worker: Worker) -> list[Work]:
        """Forget a worker that has ended or never began; return what it still had to run. Under the lock."""
        worker.alive = False
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        return worker.withdraw()

    def _reset_after_fork(self) -> None:
        for worker in self._workers:
            worker.alive = False
        for tenant in self._waiting:
            tenant.lose()
        closed = self._closed
        self._set_up()
        self._closed = closed


class _Changes:
    """What a change of a pool brings about: workers to start, tenants that gave up, a watch."""

    __slots__ = ("lost", "started", "watch")

    def __init__(self) -> None:
        self.started: list[Worker] = []
        self.lost: list[Tenant] = []
        self.watch = False

    def __bool__(self) -> bool:
        return bool(self.started or self.lost or self.watch)


def _drop(tenants: Iterable[Tenant], error: BaseException | None) -> None:
    for tenant in tenants:
        for work in tenant.lose():
            work.drop(error)


def _reset_after_fork() -> None:
    for pool in list(_pools):
        pool._reset_after_fork()


def _finish_all() -> None:
    """End all workers, idle ones at once; at interpreter shutdown, where a thread left running is killed."""
    for pool in list(_pools):
        pool._end_workers(wait=True)


_fork.on_fork(_reset_after_fork)
atexit.register(_finish_all)
