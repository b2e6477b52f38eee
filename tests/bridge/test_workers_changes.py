"""`WorkerPool.configure` and `look_after`: limits and hooks that change while the pool is in use; workers on their way back."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from django_asyncbridge.bridge import _workers
from django_asyncbridge.bridge._leases import Lease, _Greeting
from django_asyncbridge.bridge._workers import WorkersBusy
from tests.bridge import LIMIT_SECONDS, wait
from tests.bridge.pools import Busy, ended, new_pool, thread_of

NO_LIMITS: dict[str, Any] = {"maximum": None, "idle_seconds": None, "wait_seconds": None}


# --- Limits ----------------------------------------------------------------------


def test_configure_a_higher_maximum_serves_those_who_wait_at_once() -> None:
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        waiting = [pool.submit(int) for _ in range(3)]
        pool.configure(**{**NO_LIMITS, "maximum": 2})
        assert [future.result(LIMIT_SECONDS) for future in waiting] == [0, 0, 0]
        assert pool.statistics().started == 2
        call.end()


def test_configure_a_lower_maximum_ends_idle_workers_beyond_it_the_coldest_first() -> None:
    with new_pool(idle_seconds=None) as pool:
        calls = [Busy(pool) for _ in range(3)]
        first, second, third = [call.end() for call in calls]
        pool.configure(**{**NO_LIMITS, "maximum": 1})
        assert ended(first)
        assert ended(second)
        assert thread_of(pool) is third


def test_configure_a_lower_maximum_leaves_workers_to_whoever_has_them() -> None:
    with new_pool(idle_seconds=None) as pool:
        leases = [Lease(pool) for _ in range(3)]
        threads = [thread_of(lease) for lease in leases]
        pool.configure(**{**NO_LIMITS, "maximum": 1})
        assert [thread_of(lease) for lease in leases] == threads
        assert [lease.give_back() for lease in leases] == [None, None, None]
        assert ended(threads[0])
        assert ended(threads[1])
        assert thread_of(pool) is threads[2]


def test_configure_idle_seconds_holds_for_workers_that_already_wait() -> None:
    with new_pool(idle_seconds=None) as pool:
        thread = thread_of(pool)
        pool.configure(**{**NO_LIMITS, "idle_seconds": 0.0})
        assert ended(thread)


def test_configure_idle_seconds_before_calls_are_withdrawn_withdraws_only_those() -> None:
    with new_pool(idle_seconds=None) as pool:
        lease = Lease(pool)
        call = Busy(lease)
        waiting = lease.submit(int)
        pool.configure(**{**NO_LIMITS, "idle_seconds": 1.0})
        lease.shutdown(wait=False, cancel_futures=True)
        assert waiting.cancelled()
        assert thread_of(pool) is not call.end()


def test_configure_wait_seconds_holds_for_calls_that_already_wait() -> None:
    with new_pool(maximum=1, wait_seconds=None) as pool:
        call = Busy(pool)
        waiting = pool.submit(int)
        pool.configure(maximum=1, idle_seconds=None, wait_seconds=0.01)
        with pytest.raises(WorkersBusy, match=r"free within 0\.01 s"):
            waiting.result(LIMIT_SECONDS)
        call.end()


def test_configure_with_limits_that_make_no_sense_changes_nothing() -> None:
    with new_pool(maximum=2, idle_seconds=3.0, wait_seconds=4.0) as pool:
        with pytest.raises(ValueError, match="wait_seconds must be"):
            pool.configure(maximum=5, idle_seconds=6.0, wait_seconds=-1.0)
        assert (pool.maximum, pool.idle_seconds, pool.wait_seconds) == (2, 3.0, 4.0)


def test_configure_under_load_keeps_every_call_and_the_last_maximum() -> None:
    with new_pool(idle_seconds=None) as pool:
        done = threading.Semaphore(0)
        stop = threading.Event()

        def use() -> None:
            while not stop.is_set():
                lease = Lease(pool)
                assert thread_of(lease) is thread_of(lease)
                lease.shutdown()
                done.release()

        users = [threading.Thread(target=use) for _ in range(6)]
        for user in users:
            user.start()
        for maximum in [1, 5, 2, None, 3, 1, 4] * 6:
            pool.configure(**{**NO_LIMITS, "maximum": maximum})
            for _ in range(5):
                assert done.acquire(timeout=LIMIT_SECONDS)
        pool.configure(**{**NO_LIMITS, "maximum": 2})
        stop.set()
        for user in users:
            user.join(LIMIT_SECONDS)
        assert sum(worker.alive for worker in tuple(pool._workers)) <= 2
        assert pool.statistics().waiting == 0


# --- Hooks -----------------------------------------------------------------------


def test_look_after_calls_the_hook_before_a_single_call_and_the_first_of_a_lease() -> None:
    log: list[tuple[str, threading.Thread]] = []

    def note(what: str) -> Callable[[], None]:
        return lambda: log.append((what, threading.current_thread()))

    with new_pool() as pool:
        pool.look_after(on_lend=note("lent"))
        pool.submit(note("single")).result(LIMIT_SECONDS)
        for _ in range(2):
            lease = Lease(pool)
            lease.submit(note("first"))
            lease.submit(note("second")).result(LIMIT_SECONDS)
            lease.shutdown()
        assert [what for what, _ in log] == ["lent", "single", *["lent", "first", "second"] * 2]
    assert {where for _, where in log[1:]} == {log[1][1]}


def test_look_after_a_lease_whose_hook_raises_runs_its_calls_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with new_pool() as pool:
        pool.look_after(on_lend=lambda: 1 / 0)
        lease = Lease(pool)
        assert lease.submit(int).result(LIMIT_SECONDS) == 0
        lease.shutdown()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_look_after_a_lease_that_was_withdrawn_from_is_no_work_that_somebody_waits_for() -> None:
    with new_pool() as pool:
        assert not _Greeting(pool).wanted()


def test_look_after_a_lease_whose_worker_cannot_start_fails_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_thread(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with new_pool() as pool:
        pool.look_after(on_lend=lambda: None)
        lease = Lease(pool)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            future = lease.submit(int)
        with pytest.raises(RuntimeError, match="can't start"):
            future.result(LIMIT_SECONDS)
        assert lease.submit(int).result(LIMIT_SECONDS) == 0
        lease.shutdown()


def test_look_after_a_lease_that_is_quiet_calls_the_hook_in_its_thread() -> None:
    quiet: list[threading.Thread] = []
    told = threading.Event()

    def hook() -> None:
        quiet.append(threading.current_thread())
        told.set()

    with new_pool(idle_seconds=0.001) as pool:
        pool.look_after(on_quiet=hook)
        lease = Lease(pool)
        thread = thread_of(lease)
        wait(told)
        assert quiet[0] is thread
        assert thread_of(lease) is thread
        lease.shutdown()


# --- On the way back -------------------------------------------------------------


def test_worker_that_is_being_handed_over_is_waited_for_instead_of_starting_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if the test took no time.
    monkeypatch.setattr(_workers, "SOON_SECONDS", 1000.0)
    begun, go_on = threading.Event(), threading.Event()

    def hook() -> None:
        begun.set()
        wait(go_on)

    with new_pool(on_hand_over=hook) as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        assert lease.give_back() is None
        wait(begun)
        second, third = Lease(pool), Lease(pool)
        calls = [second.submit(threading.current_thread)]
        assert pool.statistics().started == 1
        # One for two is not enough: the first of them gets a new one.
        calls.append(third.submit(threading.current_thread))
        assert calls[0].result(LIMIT_SECONDS) is not thread
        assert not calls[1].done()
        go_on.set()
        assert calls[1].result(LIMIT_SECONDS) is thread
        assert pool.statistics().started == 2
        second.shutdown()
        third.shutdown()


def test_worker_that_is_refused_at_its_hand_over_is_replaced_for_those_who_wait() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hook() -> bool:
        begun.set()
        wait(go_on)
        return False

    with new_pool(on_hand_over=hook) as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        lease.give_back()
        wait(begun)
        next_one = Lease(pool)
        call = next_one.submit(threading.current_thread)
        go_on.set()
        assert call.result(LIMIT_SECONDS) is not thread
        next_one.shutdown()


def test_worker_that_is_still_busy_is_not_waited_for() -> None:
    with new_pool(on_hand_over=lambda: None) as pool:
        lease = Lease(pool)
        call = Busy(lease)
        ending = lease.give_back()
        assert ending is not None
        thread = thread_of(pool)
        assert thread is not call.end()
        ending.result(LIMIT_SECONDS)


def test_leases_one_after_the_other_share_one_worker_and_one_watch_although_somebody_looks_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread that watches those who wait must not be started for each that waits for a moment."""
    # As if the test took no time.
    monkeypatch.setattr(_workers, "SOON_SECONDS", 1000.0)
    started: list[str] = []
    start = threading.Thread.start

    def note(thread: threading.Thread) -> None:
        started.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    with new_pool(on_hand_over=lambda: time.sleep(0.001)) as pool:
        for _ in range(50):
            lease = Lease(pool)
            thread_of(lease)
            lease.shutdown()
    of_pool = [name for name in started if "-testing-" in name]
    assert set(of_pool) == {"asyncbridge-testing-1", "asyncbridge-testing-watch"}
    # One, if these take less than the second for which it looks again.
    assert len(of_pool) < 10


def test_worker_whose_hand_over_takes_long_is_not_waited_for_any_longer() -> None:
    """Whether or not there is a time limit: nobody fails for want of a worker that may be started."""
    begun, go_on = threading.Event(), threading.Event()

    def hook() -> None:
        begun.set()
        wait(go_on)

    with new_pool(wait_seconds=0.0, on_hand_over=hook) as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        lease.give_back()
        wait(begun)
        second = Lease(pool)
        assert thread_of(second) is not thread
        go_on.set()
        second.shutdown()


def test_leases_in_a_pool_without_patience_are_all_served_while_workers_may_be_started() -> None:
    with new_pool(wait_seconds=0.0, on_hand_over=lambda: None) as pool:

        def use() -> None:
            for _ in range(100):
                lease = Lease(pool)
                thread_of(lease)
                lease.shutdown()

        threads = [threading.Thread(target=use) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(LIMIT_SECONDS)
        assert pool.statistics().expired == 0


def test_configure_while_somebody_waits_leaves_one_watch() -> None:
    with new_pool(maximum=1, wait_seconds=1000.0) as pool:
        call = Busy(pool)
        waiting = pool.submit(int)
        watch = pool._watch
        for seconds in range(1000, 1020):
            pool.configure(maximum=1, idle_seconds=None, wait_seconds=float(seconds))
        assert pool._watch is watch
        call.end()
        waiting.result(LIMIT_SECONDS)


def test_lease_that_is_quiet_in_a_pool_without_idle_time_does_not_keep_looking() -> None:
    looks = threading.Semaphore(0)
    with new_pool(idle_seconds=0.0) as pool:
        pool.look_after(on_quiet=looks.release)
        lease = Lease(pool)
        thread_of(lease)
        assert looks.acquire(timeout=LIMIT_SECONDS)
        begun = time.monotonic()
        assert looks.acquire(timeout=LIMIT_SECONDS)
        assert time.monotonic() - begun > 0.5
        lease.shutdown()


def test_lease_whose_end_nobody_waits_for_any_more_ends_all_the_same() -> None:
    """The task that waited was cancelled in the moment in which the last call was done."""
    with new_pool() as pool:
        lease = Lease(pool)
        call = Busy(lease)
        ending = lease.give_back()
        assert ending is not None
        ending.cancel()
        thread = call.end()
        assert thread_of(pool) is thread
