"""The watch over a `WorkerPool` in which somebody waits: tells those who have waited for too long.

Those who wait although the pool is not full wait for a worker that is being handed over. If that takes long, the watch has
another one started for them.

Which thread may touch what. A pool has one watch at most, `WorkerPool._watch`, a thread that is there only while somebody
waits. It is written under the pool's lock, and takes it for each look; a watch that finds another in its place ends.
Whoever changes the limits wakes it.
"""

import logging
import threading
import time
from contextvars import Context
from typing import TYPE_CHECKING

from django_asyncbridge.bridge._worker import Tenant
from django_asyncbridge.bridge._workers_report import WorkersBusy, describe_busy

if TYPE_CHECKING:
    from django_asyncbridge.bridge._workers import WorkerPool

__all__ = ("SOON_SECONDS", "watch_waiting")

# Handing a worker over takes much less, unless something is wrong. Not measured.
SOON_SECONDS = 0.05

# When somebody waits for so long in a pool without a time limit, a warning says who has the workers. Not measured.
_TELL_SECONDS = 10.0
# A watch that finds nobody looks once more after so long: for those who wait for a moment only, while a worker is handed
# over, there must not be a thread each time. Not measured.
_LINGER_SECONDS = 1.0

logger = logging.getLogger("django_asyncbridge.bridge.sync")


def watch_waiting(pool: "WorkerPool") -> None:
    """Start the watch, unless there is one."""
    with pool._lock:
        if pool._watch is not None:
            return
        watch = pool._watch = threading.Thread(
            target=_expire, args=(pool,), name=f"asyncbridge-{pool.name}-watch", daemon=True
        )
    try:
        Context().run(watch.start)
    except BaseException as error:
        # Without a thread nobody looks at the time; whoever waits still gets the next free worker.
        pool._watch = None
        if not isinstance(error, RuntimeError):
            raise


def _expire(pool: "WorkerPool") -> None:
    """Tell those who have waited for too long; in the thread of the watch, which ends when nobody waits."""
    told = 0.0
    lingered = False
    while pool._watch is threading.current_thread():
        pool._match_late()
        with pool._lock:
            limit = _TELL_SECONDS if pool.wait_seconds is None else pool.wait_seconds
            if pool._waiting:
                seconds, overdue = _next_overdue(pool, limit, told)
            elif lingered:
                pool._watch = None
                return
            else:
                seconds, overdue = min(limit, _LINGER_SECONDS), None
            lingered = not pool._waiting
            message = describe_busy(pool.name, limit, tuple(pool._workers)) if overdue else ""
        if overdue is None:
            _pause(pool, seconds)
        elif pool.wait_seconds is None:
            told = time.monotonic()
            logger.warning("calls still wait, for there is no time limit: %s", message)
        else:
            _tell_expired(pool, overdue, message)


def _pause(pool: "WorkerPool", seconds: float) -> None:
    pool._watch_wake.wait(seconds)
    pool._watch_wake.clear()


def _next_overdue(pool: "WorkerPool", limit: float, told: float) -> tuple[float, Tenant | None]:
    """Return the seconds until the next look, and who has waited for too long by now; under the lock."""
    if not pool._is_full() or pool._count_returning() >= len(pool._waiting):
        return SOON_SECONDS, None
    since = max(pool._waiting[0].waiting_since, told)
    seconds = since + limit - time.monotonic()
    if seconds > 0:
        return seconds, None
    overdue = pool._waiting[0]
    if pool.wait_seconds is not None:
        pool._waiting.popleft()
    return 0.0, overdue


def _tell_expired(pool: "WorkerPool", tenant: Tenant, message: str) -> None:
    with pool._lock:
        wanted, works = tenant.wanted(), tenant.lose()
        pool._expired += wanted
    for work in works:
        error = WorkersBusy(message)
        error.pool = pool.name
        work.drop(error if wanted else None)
