"""Request threads: what Django keeps in a thread, looked after whenever a request begins or ends there.

A worker that is used again keeps its database connections; that is why it is used again. So between two requests somebody has
to do what Django does at the end of a request, also when the request ended in another way: cancelled, or broken. What
Django keeps in context variables (language, time zone, urlconf) needs nothing: each call runs in the context of its own
request, and none in that of the thread.

When a request begins (`begin_request`): connections whose server has hung up meanwhile are closed, for that costs no query, and
the queries that Django keeps for debugging are forgotten.
When it has ended (`look_after_connections`): a transaction left open is rolled back and logged, and Django closes what is
broken or too old (``CONN_MAX_AGE``, ``CONN_HEALTH_CHECKS``). When the thread ends (`retire`): everything is closed.

Which thread may touch what. The hooks run in the worker whose connections they look at, between two calls. Connections that
tests share between threads are left alone.

Source: Django's documentation on persistent connections; failure cases C68-C70.
"""

import contextlib
import logging
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

from django.db import DatabaseError, connections, reset_queries
from django.db.backends.base.base import BaseDatabaseWrapper
from django.dispatch import Signal

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import WorkerPool
from django_asyncbridge.conf import Conf
from django_asyncbridge.signals import worker_leased, worker_retired

__all__ = (
    "begin_request",
    "close_broken_connections",
    "close_connections",
    "configure",
    "look_after_calls",
    "look_after_connections",
    "release",
    "retire",
)

logger = logging.getLogger("django_asyncbridge.request_threads")


def configure(conf: Conf) -> None:
    """Give the bridge's pools the limits of the settings, and have their threads looked after; again changes them."""
    limits = conf.request_threads
    _state.request_workers.configure(
        maximum=limits.maximum,
        idle_seconds=limits.idle_seconds,
        wait_seconds=limits.wait_seconds,
    )
    _state.request_workers.look_after(
        on_lend=begin_request,
        on_hand_over=look_after_connections,
        on_retire=retire,
    )
    # The one thread of work outside of requests never ends. What is too old is not closed there, as in a management
    # command: nobody can tell the end of a piece of work, and a cursor may be open between two calls.
    _state.shared_workers.configure(maximum=1, idle_seconds=limits.idle_seconds, wait_seconds=None)
    _state.shared_workers.look_after(on_quiet=close_broken_connections, on_retire=close_connections)
    default = conf.executors["default"]
    _state.default_workers.configure(
        maximum=default.max_workers,
        idle_seconds=default.options.get("idle_seconds", limits.idle_seconds),
        wait_seconds=default.options.get("wait_seconds"),
    )
    look_after_calls(_state.default_workers)


def look_after_calls(pool: WorkerPool) -> None:
    """Have the connections of a pool for single calls looked after, before and after each."""
    pool.look_after(
        on_lend=close_broken_connections,
        on_hand_over=look_after_connections,
        on_retire=close_connections,
    )


def release() -> None:
    """Give the pools their own limits again, and no hooks; for tests."""
    for pool, maximum, idle_seconds in (
        (_state.request_workers, None, 60.0),
        (_state.shared_workers, 1, None),
        (_state.default_workers, 32, 60.0),
    ):
        pool.configure(maximum=maximum, idle_seconds=idle_seconds, wait_seconds=None)
        pool.look_after()


# --- Hooks, in the worker -----------------------------------------------------------


def begin_request() -> None:
    """Close connections that have ended meanwhile, and tell who listens that a request begins here."""
    reset_queries()
    close_broken_connections()
    _tell(worker_leased)


def close_broken_connections() -> None:
    """Close connections whose server has hung up, unless a transaction is open on them."""
    _look_at_each(_close_if_broken)


def _close_if_broken(connection: BaseDatabaseWrapper) -> None:
    if not connection.in_atomic_block and _has_news(connection) and not connection.is_usable():
        connection.close()


def look_after_connections() -> None:
    """Leave no transaction open, and close what is broken or too old."""
    _look_at_each(_look_after)


def _look_after(connection: BaseDatabaseWrapper) -> None:
    if connection.in_atomic_block or _is_off_autocommit(connection):
        _end_transaction(connection)
    else:
        connection.close_if_unusable_or_obsolete()


def retire() -> None:
    """Tell who listens that the thread ends, and close its connections."""
    _tell(worker_retired)
    close_connections()


def close_connections() -> None:
    """Close the connections of this thread."""
    _look_at_each(_close)


def _close(connection: BaseDatabaseWrapper) -> None:
    if connection.in_atomic_block:
        _end_transaction(connection)
    else:
        connection.close()


def _look_at_each(look: Callable[[BaseDatabaseWrapper], None]) -> None:
    """Call `look` with each open connection, also after one of them has raised; that is raised at the end."""
    failures: list[Exception] = []
    for connection in _open_connections():
        try:
            look(connection)
        except Exception as error:  # noqa: BLE001  # one database must not keep the others from being looked after
            failures.append(error)
    if failures:
        try:
            raise failures[0]
        finally:
            # The error's traceback refers to this frame.
            del failures


def _open_connections() -> Iterator[BaseDatabaseWrapper]:
    for connection in connections.all(initialized_only=True):
        # Closed inside a block, one of a pool is gone, but the block is not.
        if (
            connection.connection is not None or connection.in_atomic_block
        ) and not connection.allow_thread_sharing:
            yield connection


def _is_off_autocommit(connection: BaseDatabaseWrapper) -> bool:
    return bool(connection.get_autocommit() != connection.settings_dict["AUTOCOMMIT"])


def _end_transaction(connection: BaseDatabaseWrapper) -> None:
    """Roll back, and close: what else was set on the connection is anybody's guess."""
    logger.warning(
        "%s was left in a transaction on the database %r, which was rolled back; leave atomic() blocks, also when a "
        "request is cancelled, and set autocommit again",
        threading.current_thread().name,
        connection.alias,
    )
    # The driver's own: Django's refuses inside an atomic block. Whatever it raises, closing ends the transaction as well.
    with contextlib.suppress(Exception):
        connection.connection.rollback()
    # Else the connection would be kept, to be refused until the block is left. Not all are closed by closing: a
    # database in memory is not, so the connection has to be fit for use.
    connection.in_atomic_block = connection.closed_in_transaction = False
    connection.needs_rollback = False
    connection.savepoint_ids, connection.atomic_blocks, connection.run_on_commit = [], [], []
    if connection.connection is not None:
        with contextlib.suppress(DatabaseError):
            connection.set_autocommit(connection.settings_dict["AUTOCOMMIT"])
    connection.close()


def _has_news(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether something came from the server unasked, as its end does; True if that cannot be known."""
    driver: Any = connection.connection
    try:
        number = driver.fileno()
    except AttributeError:
        # Not a connection over a socket, or of a driver that does not show it.
        return False
    except Exception:  # noqa: BLE001  # each driver has its own for a connection that is closed
        return True
    if not hasattr(select, "poll"):  # pragma: no cover  # Windows
        return bool(select.select([number], [], [], 0)[0])
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))


def _tell(signal: Signal) -> None:
    if signal.receivers:
        signal.send_robust(sender=WorkerPool, thread=threading.current_thread())
