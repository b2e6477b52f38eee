"""`WorkerPool`: who gets a worker and when, how workers end, and each interleaving that the rules call safe."""

import contextlib
import ctypes
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import FrozenInstanceError
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from django_asyncbridge.bridge import _fork, _worker, _workers_watch
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge._worker import Single, Worker
from django_asyncbridge.bridge._workers import WorkerPool, WorkersBusy
from tests.bridge import LIMIT_SECONDS, HookedLock, wait
from tests.bridge.pools import Busy, Piece, ended, must_not_run, new_pool, thread_of
from tests.support import run_child, run_in_thread


def worker_of(pool: WorkerPool) -> Worker:
    (worker,) = pool._workers
    return worker


class Once:
    """A method that does something in the moment in which it is about to be called, the first time."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.before: Callable[[], object] = lambda: None
        method = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.before = self.before, lambda: None
            before()
            return method(*args, **kwargs)

        patch.setattr(owner, name, call)


# --- Threads are used again ------------------------------------------------------


def test_pool_starts_no_thread_before_the_first_call_and_names_it_after_its_use() -> None:
    before = threading.enumerate()
    with new_pool() as pool:
        assert set(threading.enumerate()) <= set(before)
        thread = thread_of(pool)
        assert thread.name == "asyncbridge-testing-1"
        assert thread.daemon
    assert not thread.is_alive()


def test_pool_runs_one_call_after_the_other_in_the_same_thread() -> None:
    with new_pool() as pool:
        assert len({thread_of(pool) for _ in range(10)}) == 1
        assert pool.statistics().started == 1


def test_pool_runs_calls_at_once_in_a_thread_each() -> None:
    with new_pool() as pool:
        calls = [Busy(pool) for _ in range(3)]
        assert pool.statistics().idle == 0
        assert len({call.end() for call in calls}) == 3
        assert pool.statistics().idle == 3


def test_pool_lends_the_worker_first_that_was_given_back_last() -> None:
    with new_pool() as pool:
        calls = [Busy(pool) for _ in range(3)]
        threads = [calls[number].end() for number in (1, 2, 0)]
        again = [Busy(pool) for _ in range(3)]
        assert [call.end() for call in again] == threads[::-1]


def test_pool_finds_a_worker_free_as_soon_as_its_call_has_an_outcome() -> None:
    """Who waits for one call and then makes the next has one thread, never two."""
    with new_pool(maximum=1) as pool:
        free: list[int] = []
        for _ in range(100):
            future = pool.submit(int)
            future.add_done_callback(lambda _: free.append(pool.statistics().idle))
            future.result(LIMIT_SECONDS)
        assert pool.statistics().started == 1
        assert set(free) <= {1, 0}
        assert pool.statistics().longest_wait_seconds == 0.0


def test_pool_hands_errors_to_who_submitted_and_its_worker_goes_on() -> None:
    def fail() -> NoReturn:
        raise SystemExit(3)

    with new_pool() as pool:
        thread = thread_of(pool)
        assert isinstance(pool.submit(fail).exception(LIMIT_SECONDS), SystemExit)
        assert thread_of(pool) is thread


@pytest.mark.parametrize(
    "options",
    [{"maximum": 0}, {"idle_seconds": -1}, {"wait_seconds": -0.1}],
    ids=["maximum", "idle_seconds", "wait_seconds"],
)
def test_pool_with_a_limit_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        WorkerPool("testing", **options)


# --- Idle workers end ------------------------------------------------------------


def test_idle_worker_ends_after_its_time_and_the_next_call_starts_another() -> None:
    with new_pool(idle_seconds=0.0) as pool:
        first = thread_of(pool)
        assert ended(first)
        assert thread_of(pool) is not first
        assert pool.statistics().started == 2


def test_idle_worker_without_a_limit_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float | None] = []

    class Queue(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            timeouts.append(timeout)
            return super().get(block, timeout)

    monkeypatch.setattr(_worker, "SimpleQueue", Queue)
    with new_pool(idle_seconds=None) as pool:
        thread_of(pool)
    with new_pool() as pool:
        thread_of(pool)
    assert set(timeouts) == {None, 60.0}


def test_idle_worker_that_is_lent_in_the_moment_its_time_is_over_runs_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its wait for work has ended, and it does not have the lock yet."""
    with new_pool(idle_seconds=0.0) as pool:
        lent: list[Any] = []
        retire = Once(monkeypatch, pool, "_retire_if_idle")
        retire.before = lambda: lent.append(pool.submit(threading.current_thread))
        first = thread_of(pool)
        assert ended(first)
        assert lent[0].result(LIMIT_SECONDS) is first
        assert pool.statistics().started == 1


def test_idle_time_that_is_over_while_a_worker_is_lent_does_not_end_it() -> None:
    with new_pool(idle_seconds=0.0) as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        # The worker looks for work all the time; every look is one more chance to end too early.
        for _ in range(100):
            assert thread_of(lease) is thread
        assert lease.give_back() is None
        assert ended(thread)


# --- A maximum -------------------------------------------------------------------


def test_full_pool_lets_calls_wait_and_serves_them_in_order() -> None:
    log: list[int] = []
    with new_pool(maximum=2) as pool:
        calls = [Busy(pool), Busy(pool)]
        waiting = [pool.submit(log.append, number) for number in range(10)]
        assert pool.statistics().waiting == 10
        thread = calls[0].end()
        for future in waiting:
            future.result(LIMIT_SECONDS)
        assert log == list(range(10))
        calls[1].end()
        statistics = pool.statistics()
        assert (statistics.workers, statistics.started, statistics.waiting) == (2, 2, 0)
        assert statistics.longest_wait_seconds > 0.0
        assert thread.is_alive()


def test_full_pool_is_exhausted_until_a_worker_is_free() -> None:
    with new_pool(maximum=1) as pool, new_pool() as unlimited:
        assert not pool.is_exhausted()
        call = Busy(pool)
        assert pool.is_exhausted()
        thread = call.end()
        assert not pool.is_exhausted()
        assert pool.owns(thread)
        assert not pool.owns(threading.current_thread())
        assert not unlimited.owns(thread)
        other = Busy(unlimited)
        assert not unlimited.is_exhausted()
        other.end()


def test_full_pool_skips_calls_that_were_cancelled_while_they_waited() -> None:
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        cancelled, waiting = pool.submit(must_not_run), pool.submit(threading.current_thread)
        cancelled.cancel()
        assert call.end() is waiting.result(LIMIT_SECONDS)
        assert pool.statistics().lent == 2


def test_full_pool_whose_waiting_calls_were_all_cancelled_has_its_worker_free() -> None:
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        pool.submit(must_not_run).cancel()
        call.end()
        assert pool.statistics().idle == 1
        assert pool.statistics().waiting == 0


def test_call_that_was_cancelled_while_it_waited_tells_those_who_wait_for_several() -> None:
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        future = pool.submit(must_not_run)
        future.cancel()
        call.end()
        thread_of(pool)
        assert wait_for_futures([future], 0).done == {future}


def test_full_pool_after_the_time_limit_says_who_has_the_workers_and_where() -> None:
    with new_pool(maximum=2, wait_seconds=0.01) as pool:
        lease = Lease(pool, holder="a request")
        calls = [Busy(lease), Busy(pool)]
        error = pool.submit(must_not_run).exception(LIMIT_SECONDS)
        assert isinstance(error, WorkersBusy)
        assert isinstance(error, TimeoutError)
        first, second = (call.end().name for call in calls)
        message = str(error)
        assert "no worker of the pool 'testing' became free within 0.01 s" in message
        assert f"{first} for 0." in message
        assert "s to a request" in message
        assert f"; {second} for 0." in message
        assert pool.statistics().expired == 1
        assert lease.give_back() is None
        assert thread_of(pool).name in (first, second)


def test_full_pool_with_a_time_limit_serves_those_who_do_not_wait_too_long() -> None:
    with new_pool(maximum=1, wait_seconds=LIMIT_SECONDS) as pool:
        call = Busy(pool)
        waiting = [pool.submit(threading.current_thread) for _ in range(3)]
        thread = call.end()
        assert {future.result(LIMIT_SECONDS) for future in waiting} == {thread}
        assert pool.statistics().expired == 0
        watch = pool._watch
        assert watch is not None
        assert watch.daemon
        assert watch.name == "asyncbridge-testing-watch"


def test_full_pool_tells_all_whose_time_is_over_each_in_turn_and_does_not_count_withdrawn_ones() -> (
    None
):
    with new_pool(maximum=1, wait_seconds=0.01) as pool:
        call = Busy(pool)
        told: list[Any] = []
        first, withdrawn, last = futures = [pool.submit(must_not_run) for _ in range(3)]
        withdrawn.cancel()
        for future in (first, last):
            future.add_done_callback(told.append)
            assert isinstance(future.exception(LIMIT_SECONDS), WorkersBusy)
        assert told == [first, last]
        assert wait_for_futures(futures, 0).done == set(futures)
        call.end()
        assert pool.statistics().expired == 2
        # The watch ends when nobody waits, and another begins when somebody does.
        for thread in threading.enumerate():
            assert thread is not pool._watch or ended(thread)
        call = Busy(pool)
        assert isinstance(pool.submit(must_not_run).exception(LIMIT_SECONDS), WorkersBusy)
        call.end()


def test_watch_of_a_full_pool_ends_soon_after_nobody_waits_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept, asleep, go_on = [], threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        asleep.set()
        wait(go_on)

    monkeypatch.setattr(_workers_watch, "_pause", lambda pool, seconds: sleep(seconds))
    with new_pool(maximum=1, wait_seconds=1000.0) as pool:
        call = Busy(pool)
        first = pool.submit(int)
        wait(asleep)
        watch = pool._watch
        assert watch is not None
        # One watch is enough for all.
        second = pool.submit(int)
        assert [pool._watch] == [watch]
        call.end()
        assert (first.result(LIMIT_SECONDS), second.result(LIMIT_SECONDS)) == (0, 0)
        go_on.set()
        assert ended(watch)
        assert [pool._watch] == [None]
        # Once for those who waited, and once in case somebody comes soon.
        assert len(slept) == 2
        assert 999 < slept[0] <= 1000
        assert slept[1] == 1.0


def test_full_pool_whose_watch_cannot_start_serves_those_who_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    with new_pool(maximum=1, wait_seconds=0.0) as pool:
        call = Busy(pool)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            waiting = pool.submit(threading.current_thread)
        assert pool._watch is None
        assert waiting.result(0) if waiting.done() else call.end() is waiting.result(LIMIT_SECONDS)


def test_full_pool_whose_watch_is_interrupted_as_it_starts_has_one_the_next_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P4: a signal handler raises before the thread is there."""

    def interrupt(thread: threading.Thread) -> NoReturn:
        raise KeyboardInterrupt

    with new_pool(maximum=1, wait_seconds=0.0) as pool:
        call = Busy(pool)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.submit(int)
        try:
            assert isinstance(pool.submit(must_not_run).exception(1), WorkersBusy)
        finally:
            call.end()


def test_watch_that_came_up_although_its_start_was_interrupted_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not watch beside the next."""
    start = threading.Thread.start
    asleep, go_on = threading.Event(), threading.Event()
    watches: list[threading.Thread] = []

    def sleep(seconds: float) -> None:
        asleep.set()
        wait(go_on)

    def interrupted(thread: threading.Thread) -> NoReturn:
        watches.append(thread)
        start(thread)
        wait(asleep)
        raise KeyboardInterrupt

    monkeypatch.setattr(_workers_watch, "_pause", lambda pool, seconds: sleep(seconds))
    with new_pool(maximum=1, wait_seconds=1000.0) as pool:
        call = Busy(pool)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.submit(int)
        go_on.set()
        assert ended(watches[0])
        call.end()


def test_full_pool_whose_watch_was_started_by_another_thread_meanwhile_has_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both found none under the lock, and start theirs without it."""
    with new_pool(maximum=1, wait_seconds=LIMIT_SECONDS) as pool:
        call = Busy(pool)
        before = set(threading.enumerate())
        watch = Once(monkeypatch, pool, "_watch_waiting")
        futures: list[Any] = []
        watch.before = lambda: futures.append(pool.submit(int))
        futures.append(pool.submit(int))
        assert {*threading.enumerate()} - before == {pool._watch}
        call.end()
        assert [future.result(LIMIT_SECONDS) for future in futures] == [0, 0]


def test_full_pool_without_a_time_limit_tells_who_has_the_workers_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """P4: nobody waits for ever without a word."""
    told = threading.Semaphore(0)
    warn = _workers_watch.logger.warning

    def warning(*args: object) -> None:
        warn(*args)
        told.release()

    monkeypatch.setattr(_workers_watch, "_TELL_SECONDS", 0.01)
    monkeypatch.setattr(_workers_watch.logger, "warning", warning)
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        future = pool.submit(threading.current_thread)
        for _ in range(2):
            assert told.acquire(timeout=LIMIT_SECONDS)
        watch = pool._watch
        assert watch is not None
        thread = call.end()
        assert future.result(LIMIT_SECONDS) is thread
        assert ended(watch)
        assert pool.statistics().expired == 0
    for record in caplog.records:
        assert record.levelno == logging.WARNING
        assert record.name == "django_asyncbridge.bridge.sync"
        message = record.getMessage()
        assert message.startswith("calls still wait, for there is no time limit: no worker of the")
        assert f"pool 'testing' became free within 0.01 s; all are lent: {thread.name}" in message


# --- Hooks -----------------------------------------------------------------------

HOOK_RAISED = "a hook of the pool 'testing' raised"


def test_hooks_run_in_the_workers_thread_between_calls_and_at_its_end() -> None:
    log: list[tuple[str, threading.Thread]] = []

    def note(what: str) -> Callable[[], None]:
        return lambda: log.append((what, threading.current_thread()))

    with new_pool(on_hand_over=note("handed over"), on_retire=note("retired")) as pool:
        pool.submit(note("first")).result(LIMIT_SECONDS)
        assert [what for what, _ in log] == ["first", "handed over"]
        pool.submit(note("second")).result(LIMIT_SECONDS)
        thread = thread_of(pool)
    assert [what for what, _ in log] == [
        *("first", "handed over", "second", "handed over", "handed over", "retired")
    ]
    assert {where for _, where in log} == {thread}


def test_hand_over_hook_that_says_no_ends_the_worker_after_it_has_delivered() -> None:
    with new_pool(maximum=1, on_hand_over=lambda: False) as pool:
        first = thread_of(pool)
        assert ended(first)
        assert thread_of(pool) is not first
    statistics = pool.statistics()
    assert (statistics.started, statistics.retired, statistics.workers) == (2, 2, 0)


def test_hand_over_hook_that_says_anything_else_keeps_the_worker() -> None:
    for answer in (None, True, 0):
        with new_pool(on_hand_over=lambda answer=answer: answer) as pool:
            assert thread_of(pool) is thread_of(pool)


def test_hand_over_hook_that_says_no_gives_those_who_wait_a_new_worker_in_order() -> None:
    log: list[int] = []
    threads: list[threading.Thread] = []

    def work(number: int) -> None:
        log.append(number)
        threads.append(threading.current_thread())

    with new_pool(maximum=1, on_hand_over=lambda: False) as pool:
        call = Busy(pool)
        waiting = [pool.submit(work, number) for number in range(4)]
        call.release()
        for future in waiting:
            future.result(LIMIT_SECONDS)
        assert log == [0, 1, 2, 3]
        assert len(set(threads)) == 4


def test_hand_over_hook_that_raises_is_logged_and_ends_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = ValueError("no good")

    def hook() -> NoReturn:
        raise error

    with new_pool(on_hand_over=hook) as pool:
        thread = thread_of(pool)
        assert ended(thread)
    (record,) = caplog.records
    assert record.name == "django_asyncbridge.bridge.sync"
    assert record.levelno == logging.ERROR
    assert record.getMessage() == HOOK_RAISED
    assert record.exc_info
    assert record.exc_info[1] is error


def test_retirement_hook_that_raises_is_logged_and_the_worker_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def hook() -> NoReturn:
        raise ValueError("no good")

    with new_pool(on_retire=hook) as pool:
        thread_of(pool)
    assert pool.statistics().workers == 0
    assert [record.getMessage() for record in caplog.records] == [HOOK_RAISED]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_hand_over_hook_that_raises_what_is_no_exception_does_not_keep_the_outcome_back() -> None:
    """P4: as the hook may that waits in `async_to_sync` for something that is cancelled."""

    def hook() -> NoReturn:
        raise SystemExit

    with new_pool(on_hand_over=hook) as pool:
        assert pool.submit(lambda: "result").result(LIMIT_SECONDS) == "result"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_retirement_hook_that_raises_what_is_no_exception_does_not_cost_the_pool_a_worker() -> None:
    def hook() -> NoReturn:
        raise SystemExit

    with new_pool(maximum=1, idle_seconds=0.0, on_retire=hook) as pool:
        assert ended(thread_of(pool))
        assert pool.statistics().workers == 0
        assert pool.submit(lambda: "result").result(LIMIT_SECONDS) == "result"


# --- Statistics ------------------------------------------------------------------


def test_statistics_are_a_frozen_record_of_one_moment() -> None:
    with new_pool(maximum=2) as pool:
        before = pool.statistics()
        calls = [Busy(pool), Busy(pool)]
        waiting = pool.submit(int)
        statistics = pool.statistics()
        assert (before.workers, before.lent, before.name) == (0, 0, "testing")
        assert (statistics.maximum, statistics.workers, statistics.idle) == (2, 2, 0)
        assert (statistics.waiting, statistics.started, statistics.retired) == (1, 2, 0)
        assert (statistics.lent, statistics.expired) == (2, 0)
        assert statistics.longest_wait_seconds == 0.0
        with pytest.raises(FrozenInstanceError):
            statistics.workers = 3  # type: ignore[misc]  # it cannot
        for call in calls:
            call.end()
        waiting.result(LIMIT_SECONDS)
        assert pool.statistics().lent == 3
    assert pool.statistics().retired == 2


# --- Shutdown --------------------------------------------------------------------


def test_pool_after_its_shutdown_refuses_calls_and_has_no_thread() -> None:
    pool = WorkerPool("testing")
    threads = [call.end() for call in (Busy(pool), Busy(pool))]
    pool.shutdown()
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(RuntimeError, match="takes no calls after shutdown"):
        pool.submit(must_not_run)
    pool.shutdown()


def test_pool_shut_down_runs_what_it_has_and_waits_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = WorkerPool("testing", maximum=1)
    log: list[object] = []
    call = Busy(pool)
    for number in range(3):
        pool.submit(log.append, number)
    call.future.add_done_callback(lambda _: log.append("released"))
    end = Once(monkeypatch, pool, "_end_workers")
    end.before = call.release
    pool.shutdown()
    assert log == ["released", 0, 1, 2] or sorted(map(str, log)) == ["0", "1", "2", "released"]
    assert log[-3:] == [0, 1, 2] or log.index(0) < log.index(1) < log.index(2)
    assert pool.statistics().workers == 0


def test_pool_shut_down_waits_for_all_calls_however_many_workers_that_takes() -> None:
    """Each worker is refused after its first call, so there is one for each."""
    pool = WorkerPool("testing", maximum=1, on_hand_over=lambda: False)
    call = Busy(pool)
    futures = [pool.submit(threading.current_thread) for _ in range(20)]
    call.release()
    run_in_thread(pool.shutdown)
    assert len({future.result(0) for future in futures}) == 20
    assert pool.statistics().workers == 0


def test_pool_shut_down_without_waiting_runs_what_it_has_and_ends() -> None:
    pool = WorkerPool("testing", maximum=1)
    call = Busy(pool)
    waiting = pool.submit(threading.current_thread)
    pool.shutdown(wait=False)
    thread = call.end()
    assert waiting.result(LIMIT_SECONDS) is thread
    assert ended(thread)


def test_pool_shut_down_with_cancel_futures_cancels_the_calls_that_wait_and_no_leases() -> None:
    pool = WorkerPool("testing", maximum=1)
    call = Busy(pool)
    lease = Lease(pool)
    of_lease, waiting = lease.submit(threading.current_thread), pool.submit(must_not_run)
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(CancelledError):
        waiting.result(0)
    assert call.end() is of_lease.result(LIMIT_SECONDS)
    lease.shutdown()
    run_in_thread(pool.shutdown)
    assert pool.statistics().workers == 0


def test_pool_shut_down_by_one_of_its_workers_does_not_wait_for_that_one() -> None:
    pool = WorkerPool("testing")
    call = Busy(pool)

    def shut_down() -> threading.Thread:
        pool.shutdown()
        return threading.current_thread()

    shutting_down = pool.submit(shut_down)
    other = call.end()
    assert ended(shutting_down.result(LIMIT_SECONDS))
    assert ended(other)


def test_pool_shut_down_by_one_of_its_workers_while_calls_wait_for_that_one_comes_back() -> None:
    """P4: they cannot have it before it is back."""
    run_child(
        """
        import os, threading
        from django_asyncbridge.bridge._workers import WorkerPool

        pool = WorkerPool("testing", maximum=1)
        begun = threading.Event()

        def work():
            begun.wait(10)
            pool.shutdown()
            return "back"

        first, second = pool.submit(work), pool.submit(lambda: "second")
        begun.set()
        try:
            assert first.result(2) == "back"
            assert second.result(2) == "second"
        except TimeoutError:
            print("hung", flush=True)
            os._exit(1)
        """
    )


def test_end_marker_that_meets_new_work_lets_that_run_first() -> None:
    """The worker is told to end, and lent again before it comes to that."""
    with new_pool(idle_seconds=None) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        worker = worker_of(pool)
        waiting = []

        def lend_again() -> None:
            waiting.append(pool.submit(threading.current_thread))

        call.future.add_done_callback(lambda _: lend_again())
        worker.end()
        thread = call.end()
        assert waiting[0].result(LIMIT_SECONDS) is thread
        assert ended(thread)
        assert pool.statistics().idle == 0
        assert lease.give_back() is None


def test_end_marker_for_a_worker_that_is_lent_ends_it_and_its_lease_gets_another() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        pool.shutdown()
        assert not thread.is_alive()
        assert thread_of(lease) is not thread
        lease.shutdown()


def test_pool_shut_down_while_a_worker_is_about_to_start_waits_for_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = WorkerPool("testing")
    waits = threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    monkeypatch.setattr(_worker, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    start = Once(monkeypatch, threading.Thread, "start")
    with ThreadPoolExecutor(1) as other:
        down: list[Any] = []

        def shut_down_meanwhile() -> None:
            down.append(other.submit(pool.shutdown))
            wait(waits)

        start.before = shut_down_meanwhile
        thread = pool.submit(threading.current_thread).result(LIMIT_SECONDS)
        down[0].result(LIMIT_SECONDS)
    assert not thread.is_alive()


def test_pool_shut_down_while_a_worker_starts_that_never_will_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = WorkerPool("testing")
    waits = threading.Event()

    def sleep(seconds: float) -> None:
        waits.set()
        time.sleep(seconds)

    monkeypatch.setattr(_worker, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    start = Once(monkeypatch, threading.Thread, "start")
    down = threading.Thread(target=pool.shutdown)

    def shut_down_and_fail() -> NoReturn:
        down.start()
        wait(waits)
        raise RuntimeError("can't start new thread")

    start.before = shut_down_and_fail
    future = pool.submit(must_not_run)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        future.result(0)
    assert ended(down)


def test_call_that_comes_as_the_pool_is_shut_down_is_refused_or_run_before_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = WorkerPool("testing", idle_seconds=None)
    lend = Once(monkeypatch, pool, "_lend")
    lend.before = pool.shutdown
    with contextlib.suppress(RuntimeError):
        pool.submit(int)
    try:
        assert pool.statistics().workers == 0
    finally:
        pool._end_workers(wait=True)


class DelayedCancel(Piece):
    """Is taken by a worker in the moment in which the pool drops it."""

    def __init__(self, before_drop: Callable[[], object]) -> None:
        super().__init__()
        self.before_drop = before_drop

    def drop(self, error: BaseException | None) -> None:
        self.before_drop()
        super().drop(error)


def test_pool_shut_down_with_cancel_futures_does_not_drop_a_call_that_a_worker_takes_meanwhile() -> (
    None
):
    """P6: a `Call` that was dropped lets its task go, while its function runs."""
    began = threading.Event()

    def meanwhile() -> None:
        call.release()
        began.wait(0.5)

    pool = WorkerPool("testing", maximum=1)
    call = Busy(pool)
    work = DelayedCancel(meanwhile)
    work.on_run = began.set
    pool.post(work)
    pool.shutdown(cancel_futures=True)
    assert not (began.is_set() and work.dropped)


def test_pools_at_interpreter_shutdown_finish_what_runs_and_are_joined() -> None:
    child = run_child(
        """
        import atexit, threading, time
        done = threading.Event()

        @atexit.register
        def before():
            # Registered first, so it runs last.
            from django_asyncbridge.bridge._workers import WorkerPool
            try:
                print("late call:", WorkerPool("late").submit(lambda: "ran").result(5))
            except RuntimeError as error:
                print("late call:", type(error).__name__)
            names = [t.name for t in threading.enumerate() if "testing" in t.name]
            # The watch sleeps until those who waited first would have waited too long.
            print("workers left:", [name for name in names if not name.endswith("-watch")])

        from django_asyncbridge.bridge._workers import WorkerPool
        from django_asyncbridge.bridge._leases import Lease

        pool = WorkerPool("testing", idle_seconds=None)
        full = WorkerPool("testing-full", maximum=1, idle_seconds=None)

        @atexit.register
        def after():
            print("busy:", pool.statistics().workers - pool.statistics().idle)
            done.set()

        def work():
            done.wait(10)
            print("busy worker finished\\n", end="")

        pool.submit(work)
        lease = Lease(pool)
        lease.submit(int).result(10)
        full.submit(done.wait, 10)
        full.submit(print, "waiting call ran\\n", end="")
        """
    )
    lines = child.stdout.splitlines()
    assert lines[0] == "busy: 2"
    assert sorted(lines[1:3]) == ["busy worker finished", "waiting call ran"]
    assert lines[3] in ("late call: ran", "late call: RuntimeError")
    assert lines[4] == "workers left: []"
    assert child.stderr == ""


# --- Threads that do not start ---------------------------------------------------


def refuse_start(thread: threading.Thread) -> NoReturn:
    raise RuntimeError("can't start new thread")


def test_thread_that_cannot_start_fails_the_call_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with new_pool(maximum=1) as pool:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse_start)
            future = pool.submit(must_not_run)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            future.result(0)
        assert pool.statistics().workers == 0
        assert thread_of(pool).is_alive()


@pytest.mark.parametrize("comes_up", [False, True])
def test_thread_whose_start_is_interrupted_fails_the_call_and_raises(
    monkeypatch: pytest.MonkeyPatch, comes_up: bool
) -> None:
    """If the thread comes up all the same, it ends without having run anything."""
    threads: list[threading.Thread] = []

    def interrupted(thread: threading.Thread) -> NoReturn:
        threads.append(thread)
        raise KeyboardInterrupt

    with new_pool(maximum=1) as pool:
        work = Piece(must_not_run)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.post(work)
        (error,) = work.dropped
        assert isinstance(error, RuntimeError)
        assert str(error) == "the start of asyncbridge-testing-1 was interrupted"
        if comes_up:
            threads[0].start()
            assert ended(threads[0])
        assert thread_of(pool) is not threads[0]
        assert pool.statistics().workers == 1


def test_thread_whose_start_is_interrupted_while_it_already_runs_the_call_is_not_lent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    begun, release = threading.Event(), threading.Event()

    def work() -> str:
        begun.set()
        wait(release)
        return "result"

    def interrupted(thread: threading.Thread) -> NoReturn:
        start(thread)
        wait(begun)
        raise KeyboardInterrupt

    pool = WorkerPool("testing")
    futures: list[Any] = []
    piece = Piece(work)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.post(piece)
    release.set()
    wait(piece.over)
    futures.append(pool.submit(lambda: "next"))
    assert futures[0].result(1) == "next"


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), KeyboardInterrupt()])
def test_thread_that_cannot_start_does_not_leave_those_waiting_who_came_meanwhile(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """P4: nobody else will give them a worker."""
    pool = WorkerPool("testing", maximum=1)
    waiting: list[Any] = []

    def fail(thread: threading.Thread) -> NoReturn:
        patch.undo()
        waiting.append(pool.submit(lambda: "second"))
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with contextlib.suppress(KeyboardInterrupt):
            pool.submit(must_not_run)
    assert waiting[0].result(1) == "second"


def test_successor_that_cannot_start_fails_or_serves_all_who_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = WorkerPool("testing", maximum=1, on_hand_over=lambda: False)
    call = Busy(pool)
    waiting = [pool.submit(int), pool.submit(int)]
    monkeypatch.setattr(threading.Thread, "start", refuse_start)
    call.end()
    done = wait_for_futures(waiting, 1).done
    assert len(done) == 2


# --- Workers that are ended from outside -----------------------------------------


class Killed(BaseException):
    """What is raised in a worker's thread by another thread."""


ignore_killed = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def kill(*_: object) -> NoReturn:
    raise Killed


@ignore_killed
def test_worker_that_is_killed_between_calls_fails_what_it_had_and_is_replaced() -> None:
    with new_pool(maximum=1) as pool:
        lease = Lease(pool)
        held, waiting = Busy(lease), pool.submit(threading.current_thread)
        killer, left = Piece(kill), Piece(must_not_run)
        for piece in (killer, left):
            lease.post(piece)
        first = held.end()
        wait(left.over)
        (error,) = left.dropped
        assert isinstance(error, RuntimeError)
        assert str(error) == f"{first.name} was ended from outside"
        second = waiting.result(LIMIT_SECONDS)
        assert second is not first
        assert ended(first)
        assert not lease.submit(int).result(LIMIT_SECONDS)
        lease.shutdown()


@ignore_killed
def test_worker_that_is_killed_drops_the_call_it_has_in_its_hands() -> None:
    """P4: as by an asynchronous exception, a moment before or after the function itself."""
    pool = WorkerPool("testing")
    thread = thread_of(pool)
    piece = Piece(kill)
    pool.post(piece)
    assert ended(thread)
    assert piece.over.is_set()


@ignore_killed
def test_worker_that_is_killed_while_it_is_idle_is_not_lent_again() -> None:
    pool = WorkerPool("testing")
    piece = Piece(on_deliver=kill)
    thread = thread_of(pool)
    pool.post(piece)
    assert ended(thread)
    assert pool.submit(lambda: "result").result(1) == "result"


def test_function_that_is_ended_by_an_asynchronous_exception_fails_and_its_worker_goes_on() -> None:
    begun = threading.Event()

    def spin() -> None:
        begun.set()
        while True:
            pass

    with new_pool() as pool:
        thread = thread_of(pool)
        future = pool.submit(spin)
        wait(begun)
        assert thread.ident is not None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Killed)
        )
        assert isinstance(future.exception(LIMIT_SECONDS), Killed)
        assert thread_of(pool) is thread


def test_full_pool_has_never_more_than_its_maximum_while_a_worker_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The worker is struck out, and its successor not yet there, when another call comes."""
    order: list[str] = []
    answers = [False]
    pool = WorkerPool("testing", maximum=1, on_hand_over=lambda: answers.pop() if answers else None)
    call = Busy(pool)
    waiting = pool.submit(order.append, "waiting")
    late: list[Any] = []
    strike_out = pool._strike_out

    def strike_out_and_post(worker: Worker) -> list[Any]:
        left = strike_out(worker)
        # Other threads wait for the lock; a finalizer does not.
        late.append(pool.submit(order.append, "late"))
        return left

    with monkeypatch.context() as patch:
        patch.setattr(pool, "_strike_out", strike_out_and_post)
        assert ended(call.end())
    waiting.result(LIMIT_SECONDS)
    late[0].result(LIMIT_SECONDS)
    try:
        assert pool.statistics().started == 2
        assert order == ["waiting", "late"]
    finally:
        run_in_thread(pool.shutdown)


# --- The lock --------------------------------------------------------------------


def test_lock_can_be_taken_again_by_a_finalizer_that_submits_a_call() -> None:
    """Finalizers run anywhere, also in a thread that has the lock."""
    with new_pool() as pool:
        lock = pool._lock
        futures: list[Any] = []
        pool._lock = cast(
            "threading.RLock",
            HookedLock(lock, lambda: futures.append(pool.submit(threading.current_thread))),
        )
        with lock:
            futures.append(pool.submit(threading.current_thread))
        pool._lock = lock
        assert len({future.result(LIMIT_SECONDS) for future in futures}) == 2


def test_call_that_is_withdrawn_before_its_worker_begins_is_not_run() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        call = Busy(lease)
        future = lease.submit(must_not_run)
        assert future.cancel()
        call.end()
        assert thread_of(lease).is_alive()
        lease.shutdown()


def test_single_call_says_whether_it_is_wanted_and_what_is_lost() -> None:
    piece = Piece()
    single = Single(piece)
    assert single.wanted()
    assert single.lose() == [piece]
    piece.is_wanted = False
    assert not single.wanted()
    # It is dropped all the same: its future may have to be notified.
    assert single.lose() == [piece]


# --- Forks -----------------------------------------------------------------------

FORK = """
    import os, sys, threading, warnings
    from django_asyncbridge.bridge._workers import WorkerPool
    from django_asyncbridge.bridge._leases import Lease

    warnings.simplefilter("ignore", DeprecationWarning)

    def in_child(function):
        child = os.fork()
        if not child:
            code = 1
            try:
                function()
                code = 0
            except BaseException as error:
                print(type(error).__name__, error, file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0

    def thread_of(executor):
        return executor.submit(threading.current_thread).result(5)
"""


def test_pool_in_a_forked_child_has_no_worker_and_starts_its_own() -> None:
    run_child(
        FORK
        + """
    pool = WorkerPool("testing", maximum=2, wait_seconds=5)
    thread = thread_of(pool)
    release = threading.Event()
    calls = [pool.submit(release.wait, 10) for _ in range(5)]

    def check():
        statistics = pool.statistics()
        assert (statistics.workers, statistics.idle, statistics.waiting) == (0, 0, 0)
        mine = thread_of(pool)
        assert mine is not thread and mine.is_alive()
        assert pool.statistics().workers == 1
        pool.shutdown()
        assert not mine.is_alive()

    # Another thread has the lock at the moment of the fork.
    locked, forked = threading.Event(), threading.Event()

    def hold():
        with pool._lock:
            locked.set()
            forked.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    locked.wait(10)
    child = os.fork()
    if not child:
        code = 1
        try:
            check()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    forked.set()
    holder.join()
    release.set()
    assert all(call.result(5) for call in calls)
    pool.shutdown()
    """
    )


def test_child_that_returns_from_a_workers_function_gets_a_clear_error_and_ends() -> None:
    child = run_child(
        FORK
        + """
    def fork():
        child = os.fork()
        return (child, os.waitpid(child, 0)[1]) if child else None

    for executor in (WorkerPool("testing"), Lease(WorkerPool("testing"))):
        future = executor.submit(fork)
        child, status = future.result(10)
        assert child
        # The parent's worker goes on.
        assert thread_of(executor).is_alive()
    print("parent went on")
    """
    )
    assert child.stdout == "parent went on\n"
    assert child.stderr.count("leave the child with os._exit()") == 2


def test_child_that_was_forked_in_a_worker_can_use_the_pool_before_it_leaves() -> None:
    run_child(
        FORK
        + """
    pool = WorkerPool("testing", maximum=1)
    lease = Lease(pool)

    def check():
        for executor in (pool, lease):
            assert thread_of(executor) is not threading.current_thread()
            if executor is pool:
                assert pool.statistics().workers == 1
        lease.shutdown()
        pool.shutdown()

    lease.submit(in_child, check).result(10)
    """
    )


def test_worker_that_finds_itself_in_a_child_says_so_and_touches_nothing_of_the_parents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    retired: list[None] = []
    pool = WorkerPool("testing", on_retire=lambda: retired.append(None))
    thread = thread_of(pool)
    with monkeypatch.context() as patch:
        # As a fork in the function does.
        future = pool.submit(patch.setattr, _fork, "_epoch", _fork.epoch() + 1)
        assert ended(thread)
    (error,) = errors
    assert isinstance(error, RuntimeError)
    assert "leave the child with os._exit()" in str(error)
    assert not future.done()
    assert retired == []
