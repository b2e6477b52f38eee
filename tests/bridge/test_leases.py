"""`Lease`: one thread for as long as it lasts, in order; and each way to its end."""

import logging
import threading
import weakref
from concurrent.futures import CancelledError, Future
from typing import Any, NoReturn

import pytest

from django_asyncbridge.bridge._leases import Lease, LeaseEndedError, _HandOver
from django_asyncbridge.bridge._workers import WorkerPool, WorkersBusy
from tests.bridge import LIMIT_SECONDS, Tracked, wait, without_gc
from tests.bridge.pools import Busy, Piece, ended, must_not_run, new_pool, thread_of
from tests.bridge.test_workers import FORK, Once, ignore_killed, kill
from tests.support import run_child, run_in_thread

# --- While it lasts --------------------------------------------------------------


def test_lease_borrows_its_worker_with_the_first_call_and_keeps_it() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        assert pool.statistics().workers == 0
        thread = thread_of(lease)
        assert thread.name == "asyncbridge-testing-1"
        assert thread_of(lease) is thread
        # Nobody else gets it meanwhile.
        assert thread_of(pool) is not thread
        assert (pool.statistics().lent, pool.statistics().idle) == (2, 1)
        lease.shutdown()


def test_lease_runs_one_call_at_a_time_in_the_order_of_submission() -> None:
    log: list[int] = []
    with new_pool() as pool:
        lease = Lease(pool)
        call = Busy(lease)
        for number in range(10):
            lease.submit(log.append, number)
        assert log == []
        call.end()
        lease.shutdown()
        assert log == list(range(10))


def test_lease_of_a_full_pool_lets_its_calls_wait_in_order() -> None:
    log: list[object] = []
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        futures = [lease.submit(log.append, number) for number in range(3)]
        assert pool.statistics().waiting == 1
        thread = call.end()
        for future in futures:
            future.result(LIMIT_SECONDS)
        assert log == [0, 1, 2]
        assert thread_of(lease) is thread
        lease.shutdown()


def test_lease_asked_by_its_own_thread_refuses_instead_of_waiting_for_itself() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        with pytest.raises(RuntimeError, match=r"asyncbridge-testing-1 would deadlock"):
            lease.submit(lambda: lease.submit(print)).result(LIMIT_SECONDS)
        lease.shutdown()


def test_lease_whose_worker_has_ended_is_not_confused_with_a_thread_that_got_its_ident() -> None:
    """C05: idents are used again; the next call brings another worker."""
    with new_pool() as pool:
        lease = Lease(pool)
        first = thread_of(lease)
        pool.shutdown()
        assert not first.is_alive()
        assert lease._worker is not None
        lease._worker.thread._ident = threading.get_ident()  # type: ignore[attr-defined]  # as if
        assert thread_of(lease) is not first
        lease.shutdown()


@ignore_killed
def test_lease_whose_worker_was_killed_gets_another() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        lease.post(Piece(kill))
        assert ended(thread)
        assert thread_of(lease).is_alive()
        lease.shutdown()


def test_lease_whose_time_limit_is_over_fails_all_its_calls_and_can_try_again() -> None:
    with new_pool(maximum=1, wait_seconds=0.01) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        # What was withdrawn is dropped as well: its future may have to be notified.
        pieces = [Piece(must_not_run), Piece(must_not_run)]
        pieces[1].is_wanted = False
        with pool._lock:
            for piece in pieces:
                lease.post(piece)
        for piece in pieces:
            wait(piece.over)
            assert [type(error) for error in piece.dropped] == [WorkersBusy]
        assert pool.statistics().expired == 1
        thread = call.end()
        assert thread_of(lease) is thread
        lease.shutdown()


# --- Its end ---------------------------------------------------------------------


def test_lease_that_is_given_back_idle_does_not_wake_its_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        (worker,) = pool._workers
        submitted = worker.submitted
        assert lease.give_back() is None
        assert pool.statistics().idle == 1
        assert worker.submitted == submitted
        assert thread_of(pool) is thread


def test_lease_that_was_given_back_takes_no_calls() -> None:
    with new_pool() as pool:
        used, unused = Lease(pool), Lease(pool)
        thread_of(used)
        for lease in (used, unused):
            assert lease.give_back() is None
            with pytest.raises(LeaseEndedError, match="the block that this thread was lent to has"):
                lease.submit(must_not_run)
        assert pool.statistics().lent == 1


def test_lease_that_is_given_back_twice_gives_its_worker_back_once() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        call = Busy(lease)
        end = lease.give_back()
        assert end is not None
        assert lease.give_back() is end
        call.end()
        end.result(LIMIT_SECONDS)
        assert pool.statistics().idle == 1


def test_lease_that_is_given_back_while_it_is_busy_ends_after_its_last_call() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        call = Busy(lease)
        log: list[str] = []
        future = lease.submit(log.append, "last")
        end = lease.give_back()
        assert end is not None
        end.add_done_callback(lambda _: log.append(f"idle: {pool.statistics().idle}"))
        assert pool.statistics().idle == 0
        assert not end.done()
        thread = call.end()
        future.result(LIMIT_SECONDS)
        end.result(LIMIT_SECONDS)
        assert log == ["last", "idle: 1"]
        assert thread_of(pool) is thread


def test_lease_that_is_given_back_while_it_waits_runs_its_calls_first() -> None:
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        future = lease.submit(threading.current_thread)
        end = lease.give_back()
        assert end is not None
        later = pool.submit(threading.current_thread)
        assert call.end() is future.result(LIMIT_SECONDS)
        end.result(LIMIT_SECONDS)
        later.result(LIMIT_SECONDS)
        assert pool.statistics().idle == 1


def test_lease_that_is_given_back_while_it_waits_ends_when_its_time_is_over() -> None:
    with new_pool(maximum=1, wait_seconds=0.01) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        with pool._lock:
            future = lease.submit(must_not_run)
            end = lease.give_back()
        assert end is not None
        end.result(LIMIT_SECONDS)
        assert isinstance(future.exception(LIMIT_SECONDS), WorkersBusy)
        call.end()


def test_lease_that_is_given_back_when_its_waiting_calls_were_cancelled_needs_no_worker() -> None:
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        lease.submit(must_not_run).cancel()
        assert lease.give_back() is None
        call.end()
        assert (pool.statistics().lent, pool.statistics().idle) == (1, 1)


def test_lease_whose_waiting_calls_are_cancelled_after_it_was_given_back_ends_without_a_worker() -> (
    None
):
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        future = lease.submit(must_not_run)
        end = lease.give_back()
        assert end is not None
        future.cancel()
        call.end()
        end.result(LIMIT_SECONDS)
        assert (pool.statistics().lent, pool.statistics().idle) == (1, 1)


def test_lease_whose_waiting_calls_were_cancelled_waits_again_for_the_next() -> None:
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        lease.submit(must_not_run).cancel()
        thread = call.end()
        assert thread_of(lease) is thread
        lease.shutdown()


def test_lease_given_back_between_its_first_call_and_its_worker_runs_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call is noted, and its thread has not asked the pool for a worker yet."""
    with new_pool() as pool:
        lease = Lease(pool)
        ends: list[Future[None] | None] = []
        lend = Once(monkeypatch, pool, "_lend_locked")
        lend.before = lambda: ends.append(lease.give_back())
        future = lease.submit(threading.current_thread)
        thread = future.result(LIMIT_SECONDS)
        assert ends[0] is not None
        ends[0].result(LIMIT_SECONDS)
        assert thread_of(pool) is thread


def test_lease_that_gets_a_second_call_before_its_worker_has_one_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        second: list[Future[threading.Thread]] = []
        lend = Once(monkeypatch, pool, "_lend_locked")
        lend.before = lambda: second.append(lease.submit(threading.current_thread))
        thread = thread_of(lease)
        assert second[0].result(LIMIT_SECONDS) is thread
        assert pool.statistics().started == 1
        lease.shutdown()


@pytest.mark.parametrize("where", ["_lend_locked", "_match", "_give"])
def test_lease_whose_first_call_is_interrupted_can_be_used_again(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """P4: a signal handler raises in the thread that posts, before there is a worker."""

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    with new_pool() as pool:
        thread = thread_of(pool)
        lease = Lease(pool)
        lend = Once(monkeypatch, pool, where)
        lend.before = interrupt
        # As if the worker were lent: `_match` is reached then.
        if where == "_match":
            pool._idle.clear()
        with pytest.raises(KeyboardInterrupt):
            lease.submit(must_not_run)
        assert pool.statistics().waiting == 0
        assert lease.submit(lambda: "result").result(LIMIT_SECONDS) == "result"
        assert thread.is_alive()
        lease.shutdown()


def test_lease_whose_later_call_is_interrupted_while_it_waits_runs_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The interruption comes in the moment after the call is noted."""

    class Interrupting(list[Any]):
        def append(self, work: Any) -> None:
            super().append(work)
            raise KeyboardInterrupt

    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        first = lease.submit(threading.current_thread)
        lease._pending = Interrupting(lease._pending)
        with pytest.raises(KeyboardInterrupt):
            lease.submit(int)
        lease._pending = list(lease._pending)
        assert pool.statistics().waiting == 1
        assert call.end() is first.result(LIMIT_SECONDS)
        lease.shutdown()


def test_lease_that_nobody_refers_to_any_more_gives_its_worker_back() -> None:
    """P6: as of a context whose block was never left, because its task was destroyed."""
    with new_pool() as pool, without_gc():
        lease = Lease(pool)
        thread = thread_of(lease)
        del lease
        assert thread_of(pool) is thread


# --- Hooks -----------------------------------------------------------------------


def test_lease_given_back_to_a_pool_with_a_hook_has_it_called_in_its_thread_once() -> None:
    called: list[threading.Thread] = []
    with new_pool(on_hand_over=lambda: called.append(threading.current_thread())) as pool:
        idle, busy = Lease(pool), Lease(pool)
        first, call = thread_of(idle), Busy(busy)
        assert called == []
        # Nobody has to wait for the hook.
        assert idle.give_back() is None
        end = busy.give_back()
        second = call.end()
        assert end is not None
        end.result(LIMIT_SECONDS)
        assert second in called
        pool.shutdown()
        assert sorted(called, key=id) == sorted((first, second), key=id)


@pytest.mark.parametrize("raises", [False, True])
def test_lease_whose_worker_the_hook_refuses_makes_room_for_another(
    raises: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> bool:
        if raises:
            raise ValueError
        return False

    with new_pool(maximum=1, on_hand_over=refuse) as pool:
        lease = Lease(pool)
        first = thread_of(lease)
        waiting = Lease(pool)
        future = waiting.submit(threading.current_thread)
        lease.shutdown()
        second = future.result(LIMIT_SECONDS)
        assert second is not first
        assert ended(first)
        waiting.shutdown()
    assert {record.levelno for record in caplog.records} == ({logging.ERROR} if raises else set())


# --- Shutdown, as of any executor ------------------------------------------------


def test_shutdown_waits_for_what_was_submitted() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        call, future = Busy(lease), lease.submit(lambda: "result")
        ending = threading.Thread(target=lease.shutdown)
        ending.start()
        assert ending.is_alive()
        call.release()
        assert ended(ending)
        assert future.result(0) == "result"
        assert pool.statistics().idle == 1
        lease.shutdown()


def test_shutdown_without_waiting_runs_what_was_submitted() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        call, future = Busy(lease), lease.submit(lambda: "result")
        lease.shutdown(wait=False)
        assert not future.done()
        call.end()
        assert future.result(LIMIT_SECONDS) == "result"


def test_shutdown_with_cancel_futures_cancels_what_has_not_started() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        call, future = Busy(lease), lease.submit(must_not_run)
        lease.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(CancelledError):
            future.result(0)
        assert call.end() is thread_of(pool)


def test_shutdown_with_cancel_futures_of_a_lease_that_waits_needs_no_worker() -> None:
    with new_pool(maximum=1) as pool:
        call = Busy(pool)
        lease = Lease(pool)
        future = lease.submit(must_not_run)
        run_in_thread(lambda: lease.shutdown(cancel_futures=True))
        assert future.cancelled()
        call.end()
        assert (pool.statistics().lent, pool.statistics().idle) == (1, 1)


def test_shutdown_in_the_leases_own_thread_does_not_wait() -> None:
    with new_pool() as pool:
        lease = Lease(pool)

        def end_it() -> threading.Thread:
            lease.shutdown()
            return threading.current_thread()

        thread = lease.submit(end_it).result(LIMIT_SECONDS)
        end = lease.give_back()
        assert end is not None
        end.result(LIMIT_SECONDS)
        assert thread_of(pool) is thread


def test_shutdown_after_giving_back_leaves_the_next_tenants_calls_alone() -> None:
    with new_pool() as pool:
        lease, other = Lease(pool), Lease(pool)
        thread_of(lease)
        lease.shutdown()
        call, future = Busy(other), other.submit(lambda: "result")
        lease.shutdown(wait=False, cancel_futures=True)
        call.end()
        assert future.result(LIMIT_SECONDS) == "result"
        other.shutdown()


def test_lease_given_back_as_the_pool_is_shut_down_leaves_no_dead_worker_to_lend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P4: the worker ends between the end of the lease and the moment in which it is taken back."""
    with new_pool() as pool:
        lease, other = Lease(pool), Lease(pool)
        thread = thread_of(lease)
        take_back = Once(monkeypatch, pool, "_take_back")
        take_back.before = pool.shutdown
        lease.give_back()
        assert not thread.is_alive()
        assert pool.statistics().idle == 0
        assert thread_of(other).is_alive()
        other.shutdown()


def test_shutdown_when_the_worker_has_died_does_not_wait() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        thread_of(lease)
        pool.shutdown()
        run_in_thread(lease.shutdown)


@ignore_killed
def test_end_of_a_lease_whose_worker_dies_before_it_comes() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        call = Busy(lease)
        lease.post(Piece(kill))
        end = lease.give_back()
        assert end is not None
        assert ended(call.end())
        assert end.result(LIMIT_SECONDS) is None


def test_shutdown_twice_the_second_time_with_cancel_futures_gives_the_worker_back() -> None:
    pool = WorkerPool("testing", maximum=1)
    lease = Lease(pool)
    call = Busy(lease)
    lease.shutdown(wait=False)
    lease.shutdown(wait=False, cancel_futures=True)
    call.end()
    assert pool.submit(lambda: "result").result(1) == "result"


def test_shutdown_twice_the_second_time_with_cancel_futures_waits_for_the_running_call() -> None:
    pool = WorkerPool("testing")
    lease = Lease(pool)
    call = Busy(lease)
    lease.shutdown(wait=False)
    end = lease.give_back()
    assert end is not None
    lease.shutdown(wait=False, cancel_futures=True)
    try:
        assert not end.done()
    finally:
        call.end()


def test_shutdown_with_cancel_futures_while_the_pool_is_shut_down_lets_the_worker_end() -> None:
    pool = WorkerPool("testing", idle_seconds=None)
    lease = Lease(pool)
    call = Busy(lease)
    pool.shutdown(wait=False)
    lease.shutdown(wait=False, cancel_futures=True)
    thread = call.end()
    thread.join(1)
    try:
        assert not thread.is_alive()
    finally:
        pool._end_workers(wait=True)


# --- Forks -----------------------------------------------------------------------


def test_lease_in_a_forked_child_has_a_worker_of_the_child() -> None:
    """Forked while it is idle, busy, waits for a worker, and has been given back while busy."""
    run_child(
        FORK
        + """
    pool = WorkerPool("testing", maximum=2, idle_seconds=None)
    idle, busy, waiting, unused, ended = (Lease(pool) for _ in range(5))
    thread = thread_of(idle)
    release = threading.Event()
    calls = [busy.submit(release.wait, 10), waiting.submit(int), waiting.submit(int)]
    del ended

    def check():
        for lease in (idle, busy, waiting, unused):
            mine = thread_of(lease)
            assert mine is not thread and mine.is_alive()
            assert thread_of(lease) is mine
            lease.shutdown()
        pool.shutdown()
        assert not mine.is_alive()

    in_child(check)
    # Given back in the child without having been used there.
    def give_back():
        for lease in (idle, busy, waiting, unused):
            assert lease.give_back() is None
        assert thread_of(pool) is not thread

    in_child(give_back)
    release.set()
    idle.shutdown()
    for call in calls:
        call.result(10)
    for lease in (busy, waiting, unused):
        lease.shutdown()
    pool.shutdown()
    """
    )


def test_lease_whose_first_call_was_being_posted_by_another_thread_at_the_fork_works_in_the_child() -> (
    None
):
    """P8: the process's shared worker, for one, is used for the first time by any thread."""
    run_child(
        FORK
        + """
    pool = WorkerPool("testing")
    lease = Lease(pool)
    noted, go_on = threading.Event(), threading.Event()
    lend = pool._lend_locked

    def lend_late(tenant, changes):
        noted.set()
        go_on.wait(10)
        lend(tenant, changes)

    pool._lend_locked = lend_late
    posting = threading.Thread(target=lambda: lease.submit(int).result(10))
    posting.start()
    assert noted.wait(10)
    del pool._lend_locked
    try:
        in_child(lambda: lease.submit(int).result(2))
    finally:
        go_on.set()
    """,
        expect_code=0,
        timeout_seconds=15,
    )


def test_end_of_a_lease_is_wanted_in_any_case() -> None:
    """As any piece of work in a queue, it can be asked."""
    assert _HandOver().wanted()


# --- What is kept ----------------------------------------------------------------


def test_lease_and_worker_keep_nothing_of_a_call_that_has_ended() -> None:
    """P7, and memory: an idle worker waits for a long time."""

    with new_pool() as pool, without_gc():
        lease = Lease(pool)
        tracked = [Tracked()]
        alive = weakref.ref(tracked[0])
        lease.submit(id, tracked.pop()).result(LIMIT_SECONDS)
        # The worker has let go of it once it looks for the next.
        thread_of(lease)
        assert alive() is None
        lease.shutdown()


def test_lease_is_an_executor_that_can_be_used_as_a_context_manager() -> None:
    with new_pool() as pool, Lease(pool) as own:
        assert own.submit(lambda: "result").result(LIMIT_SECONDS) == "result"
        assert list(own.map(abs, [-1, -2])) == [1, 2]


# --- Looking after the thread ahead of its return -----------------------------------------


def test_look_after_now_in_the_last_call_has_the_worker_given_back_without_being_woken() -> None:
    called: list[threading.Thread] = []
    with new_pool(on_hand_over=lambda: called.append(threading.current_thread())) as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        lease.submit(lease.look_after_now).result(LIMIT_SECONDS)
        assert called == [thread]
        assert lease.give_back() is None
        # At once: no hand-over is on its way.
        assert pool.statistics().idle == 1
        assert len(called) == 1


def test_look_after_now_followed_by_another_call_is_done_again_at_the_end() -> None:
    called: list[int] = []
    with new_pool(on_hand_over=lambda: called.append(1)) as pool:
        lease = Lease(pool)
        lease.submit(lease.look_after_now).result(LIMIT_SECONDS)
        thread_of(lease)
        lease.shutdown()
        # Lent again only after the hook.
        thread_of(pool)
        assert len(called) >= 2


def test_look_after_now_that_is_refused_is_asked_again_and_ends_the_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> bool:
        return False

    with new_pool(on_hand_over=refuse) as pool:
        lease = Lease(pool)
        thread = thread_of(lease)
        lease.submit(lease.look_after_now).result(LIMIT_SECONDS)
        lease.shutdown()
        assert ended(thread)


def test_look_after_now_in_another_thread_or_without_a_hook_does_nothing() -> None:
    called: list[int] = []
    with new_pool(on_hand_over=lambda: called.append(1)) as pool:
        lease = Lease(pool)
        lease.look_after_now()
        thread_of(lease)
        lease.look_after_now()
        assert called == []
        lease.shutdown()
    with new_pool() as pool:
        lease = Lease(pool)
        lease.submit(lease.look_after_now).result(LIMIT_SECONDS)
        lease.shutdown()
        assert pool.statistics().idle == 1


def test_look_after_now_does_not_count_for_calls_that_are_in_the_queue_already() -> None:
    called: list[int] = []
    gate = threading.Event()
    with new_pool(on_hand_over=lambda: called.append(1)) as pool:
        lease = Lease(pool)

        def look() -> None:
            wait(gate)
            lease.look_after_now()

        first = lease.submit(look)
        second = lease.submit(called.append, 2)
        gate.set()
        second.result(LIMIT_SECONDS)
        assert first.done()
        lease.shutdown()
        # What the second call left behind is not for the next.
        thread_of(pool)
        assert called[:3] == [1, 2, 1]


def test_lease_has_a_worker_from_its_first_call_to_its_end() -> None:
    with new_pool() as pool:
        lease = Lease(pool)
        assert not lease.has_worker()
        thread_of(lease)
        assert lease.has_worker()
        lease.shutdown()
        assert not lease.has_worker()
