"""Request threads: limits from the settings, and what is done for a thread between two requests."""

import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from django.dispatch import Signal
from django.test import override_settings

from django_asyncbridge import request_threads, signals
from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge._workers import WorkerPool
from tests.bridge import LIMIT_SECONDS
from tests.bridge.pools import ended, new_pool, thread_of
from tests.support import run_in_thread


def limits(pool: WorkerPool) -> tuple[int | None, float | None, float | None]:
    return pool.maximum, pool.idle_seconds, pool.wait_seconds


# --- Limits ------------------------------------------------------------------------


def test_configure_without_settings_gives_the_documented_limits() -> None:
    assert limits(_state.request_workers) == (None, 60.0, 10.0)
    assert limits(_state.default_workers) == (32, 60.0, None)
    assert limits(_state.shared_workers) == (1, 60.0, None)


def test_configure_follows_settings_that_are_overridden_and_put_back() -> None:
    changed = {
        "REQUEST_THREADS": {"MAX": 3, "IDLE_SECONDS": 4, "WAIT_SECONDS": None},
        "EXECUTORS": {"default": {"MAX_WORKERS": 5, "OPTIONS": {"wait_seconds": 6.0}}},
    }
    with override_settings(ASYNCBRIDGE=changed):
        assert limits(_state.request_workers) == (3, 4.0, None)
        assert limits(_state.default_workers) == (5, 4.0, 6.0)
    assert limits(_state.request_workers) == (None, 60.0, 10.0)
    assert limits(_state.default_workers) == (32, 60.0, None)


def test_configure_with_settings_that_are_wrong_takes_the_rest() -> None:
    """The checks name what is wrong; until then the site has to start."""
    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": "four", "WAIT_SECONDS": 1}}):
        assert limits(_state.request_workers) == (None, 60.0, 1.0)


def test_release_gives_the_pools_back_as_the_bridge_made_them() -> None:
    request_threads.release()
    try:
        assert limits(_state.request_workers) == (None, 60.0, None)
        assert limits(_state.shared_workers) == (1, None, None)
        assert limits(_state.default_workers) == (32, 60.0, None)
        assert _state.request_workers._on_hand_over is None
    finally:
        with override_settings(ASYNCBRIDGE={}):
            pass
    assert _state.request_workers._on_hand_over is request_threads.look_after_connections


# --- Connections ---------------------------------------------------------------------


class Connection:
    """A database connection, as far as these rules ask."""

    alias = "default"
    settings_dict: ClassVar = {"AUTOCOMMIT": True}

    def __init__(self, driver: Any = None, **state: Any) -> None:
        self.log: list[str] = []
        self.connection = driver or SimpleNamespace(rollback=self._rollback)
        self.allow_thread_sharing = self.in_atomic_block = self.closed_in_transaction = False
        self.usable = self.autocommit = True
        vars(self).update(state)

    def _rollback(self) -> None:
        self.log.append("rollback")
        raise KeyError("the driver has its own idea")

    def get_autocommit(self) -> bool:
        return self.autocommit

    def set_autocommit(self, autocommit: bool) -> None:
        assert not self.in_atomic_block, "Django refuses it there"
        self.log.append("autocommit")

    def is_usable(self) -> bool:
        self.log.append("asked")
        return self.usable

    def close(self) -> None:
        assert not self.in_atomic_block, "Django would keep it"
        self.log.append("closed")

    def close_if_unusable_or_obsolete(self) -> None:
        self.log.append("looked after")


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Connection]:
    """Return a function that makes the one connection of every thread."""

    def connect(*args: Any, **state: Any) -> Connection:
        connection = Connection(*args, **state)

        def every(initialized_only: bool) -> list[Connection]:
            assert initialized_only, "it would make one for each alias"
            return [connection]

        monkeypatch.setattr(request_threads, "connections", SimpleNamespace(all=every))
        return connection

    return connect


def test_look_after_a_connection_has_django_close_what_is_too_old(
    connect: Callable[..., Connection],
) -> None:
    connection = connect()
    request_threads.look_after_connections()
    assert connection.log == ["looked after"]


@pytest.mark.parametrize("state", [{"in_atomic_block": True}, {"autocommit": False}])
@pytest.mark.parametrize(
    "hook", [request_threads.look_after_connections, request_threads.close_connections]
)
def test_look_after_a_transaction_left_open_rolls_back_closes_and_tells(
    connect: Callable[..., Connection],
    caplog: pytest.LogCaptureFixture,
    hook: Callable[[], None],
    state: dict[str, bool],
) -> None:
    connection = connect(**state, closed_in_transaction=True)
    hook()
    if hook is request_threads.close_connections and "autocommit" in state:
        assert connection.log == ["closed"]
        return
    assert connection.log == ["rollback", "autocommit", "closed"]
    assert not connection.closed_in_transaction
    (record,) = caplog.records
    assert (record.levelno, record.name) == (
        logging.WARNING,
        "django_asyncbridge.request_threads",
    )
    assert record.getMessage().startswith(
        "MainThread was left in a transaction on the database 'default'"
    )


@pytest.mark.parametrize("state", [{"allow_thread_sharing": True}, {"connection": None}])
def test_look_after_a_connection_that_is_shared_or_not_open_does_nothing(
    connect: Callable[..., Connection], state: dict[str, Any]
) -> None:
    connection = connect(**state)
    request_threads.look_after_connections()
    request_threads.close_connections()
    request_threads.close_broken_connections()
    assert connection.log == []


def test_close_connections_closes_them(connect: Callable[..., Connection]) -> None:
    connection = connect()
    request_threads.close_connections()
    assert connection.log == ["closed"]


@contextmanager
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_begin_of_a_request_asks_a_silent_connection_nothing(
    connect: Callable[..., Connection],
) -> None:
    with sockets() as (ours, _theirs):
        connection = connect(ours)
        request_threads.begin_request()
    assert connection.log == []


@pytest.mark.parametrize("usable", [True, False])
@pytest.mark.parametrize("hang_up", [True, False], ids=["hung up", "a notice"])
def test_begin_of_a_request_closes_a_connection_that_has_news_and_is_broken(
    connect: Callable[..., Connection], usable: bool, hang_up: bool
) -> None:
    with sockets() as (ours, theirs):
        connection = connect(ours, usable=usable)
        theirs.close() if hang_up else theirs.send(b"notice")
        request_threads.begin_request()
    assert connection.log == (["asked"] if usable else ["asked", "closed"])


def test_begin_of_a_request_leaves_an_open_transaction_alone(
    connect: Callable[..., Connection],
) -> None:
    with sockets() as (ours, theirs):
        connection = connect(ours, usable=False, in_atomic_block=True)
        theirs.close()
        request_threads.begin_request()
    assert connection.log == []


def test_begin_of_a_request_whose_driver_says_that_it_is_closed_closes_it(
    connect: Callable[..., Connection],
) -> None:
    def fileno() -> int:
        raise OSError("the connection is closed")

    connection = connect(SimpleNamespace(fileno=fileno), usable=False)
    request_threads.begin_request()
    assert connection.log == ["asked", "closed"]


# --- Signals -------------------------------------------------------------------------


@contextmanager
def heard(signal: Signal) -> Iterator[list[threading.Thread]]:
    threads: list[threading.Thread] = []

    def note(thread: threading.Thread, **_kwargs: Any) -> None:
        assert thread is threading.current_thread()
        threads.append(thread)

    signal.connect(note)
    try:
        yield threads
    finally:
        signal.disconnect(note)


def test_signals_tell_the_begin_of_each_lease_and_the_end_of_the_thread() -> None:
    with heard(signals.worker_leased) as leased, heard(signals.worker_retired) as retired:
        with new_pool(on_retire=request_threads.retire) as pool:
            pool.look_after(on_lend=request_threads.begin_request, on_retire=request_threads.retire)
            for _ in range(2):
                lease = Lease(pool)
                thread = thread_of(lease)
                lease.shutdown()
        assert ended(thread)
    # Signals are everybody's: a request thread of an earlier test that idles out now is heard too.
    assert (leased.count(thread), retired.count(thread)) == (2, 1)


def test_begin_request_forgets_the_queries_of_the_request_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With DEBUG Django keeps them, and its own receiver of `request_started` does not come to this thread."""
    called: list[str] = []
    monkeypatch.setattr(request_threads, "reset_queries", lambda: called.append("reset"))
    run_in_thread(request_threads.begin_request, LIMIT_SECONDS)
    assert called == ["reset"]


def test_signal_receiver_that_raises_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(**_kwargs: Any) -> None:
        raise ValueError("no good")

    signals.worker_leased.connect(fail)
    try:
        run_in_thread(request_threads.begin_request, LIMIT_SECONDS)
    finally:
        signals.worker_leased.disconnect(fail)
    assert [record.name for record in caplog.records] == ["django.dispatch"]


def test_look_after_connections_of_which_one_fails_looks_after_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it raises is raised in the end, so that the thread is given up."""

    class Failing(Connection):
        def close_if_unusable_or_obsolete(self) -> None:
            raise KeyError("no good")

    some = [Connection(), Failing(), Connection()]
    monkeypatch.setattr(request_threads, "connections", SimpleNamespace(all=lambda **_: some))
    with pytest.raises(KeyError, match="no good"):
        request_threads.look_after_connections()
    assert [connection.log for connection in some] == [["looked after"], [], ["looked after"]]


def test_look_after_a_block_whose_connection_is_gone_ends_the_block(
    connect: Callable[..., Connection],
) -> None:
    """Django gives the connection back to the driver's pool in the middle of a block, and keeps the block."""
    connection = connect(connection=None, in_atomic_block=True)
    request_threads.look_after_connections()
    assert not connection.in_atomic_block
    assert connection.log == ["closed"]
