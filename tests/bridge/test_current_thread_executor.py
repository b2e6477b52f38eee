"""`CurrentThreadExecutor`: what was accepted is run, what comes later is refused, and nobody waits for ever."""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from queue import SimpleQueue
from typing import Any, cast

import pytest

from django_asyncbridge.bridge import _fork
from django_asyncbridge.bridge.current_thread_executor import (
    CurrentThreadExecutor,
    _ExecutorEndedError,
)
from tests.bridge import HookedLock, Tracked, without_gc
from tests.support import run_in_thread


class Interrupted(BaseException):
    """What a signal handler raises in the waiting thread."""


def done() -> "Future[None]":
    future: Future[None] = Future()
    future.set_result(None)
    return future


def ended(outer: CurrentThreadExecutor | None = None) -> CurrentThreadExecutor:
    executor = CurrentThreadExecutor(outer)
    executor.run_until_future(done())
    return executor


def submit(
    executor: CurrentThreadExecutor, function: Callable[..., Any], *args: Any
) -> "Future[Any]":
    """Submit from another thread, as async code does."""
    return run_in_thread(lambda: executor.submit(function, *args))


# --- Waiting ---------------------------------------------------------------------


def test_run_until_future_runs_what_was_submitted_in_this_thread_in_order() -> None:
    executor = CurrentThreadExecutor(None)
    future: Future[None] = Future()
    log: list[tuple[str, int]] = []

    def work(name: str) -> None:
        log.append((name, threading.get_ident()))

    def other_thread() -> list[Future[None]]:
        calls = [executor.submit(work, name) for name in ("first", "second")]
        future.set_result(None)
        return calls

    thread = threading.Thread(target=other_thread)
    thread.start()
    executor.run_until_future(future)
    thread.join()
    assert log == [("first", threading.get_ident()), ("second", threading.get_ident())]


def test_wait_that_nobody_watches_goes_on_when_nothing_comes_in_time() -> None:
    executor = CurrentThreadExecutor(None)
    waits: list[float | None] = []

    class Late(SimpleQueue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            waits.append(timeout)
            if len(waits) > 1:
                executor._close()
            return super().get(block, timeout)

    executor._queue = Late()
    executor._serve(lambda: True, watch_seconds=0.0)
    assert waits == [0.0, 0.0]


def test_run_until_future_runs_what_was_accepted_before_the_future_was_done() -> None:
    executor = CurrentThreadExecutor(None)
    call = submit(executor, lambda: "result")
    executor.run_until_future(done())
    assert call.result(0) == "result"


def test_run_until_future_in_another_thread_raises() -> None:
    executor = CurrentThreadExecutor(None)
    with pytest.raises(RuntimeError, match="must be called in"):
        run_in_thread(lambda: executor.run_until_future(done()))


def test_run_until_future_hands_errors_to_who_submitted_and_goes_on() -> None:
    def fail() -> None:
        raise error

    error = SystemExit(3)
    executor = CurrentThreadExecutor(None)
    failing = submit(executor, fail)
    executor.run_until_future(done())
    assert failing.exception(0) is error


def test_run_until_future_does_not_run_what_was_cancelled() -> None:
    executor = CurrentThreadExecutor(None)
    call = submit(executor, pytest.fail, "it ran")
    assert call.cancel()
    executor.run_until_future(done())
    with pytest.raises(CancelledError):
        call.result(0)


def test_run_until_future_for_a_second_future_waits_for_that_one_too() -> None:
    """P4: as asgiref's; nothing would ever come to an executor that has ended."""

    def twice() -> None:
        executor = ended()
        executor.run_until_future(done())

    run_in_thread(twice, timeout_seconds=3)


def test_run_until_future_keeps_nothing_of_a_failed_call_alive() -> None:
    def fail(tracked: Tracked) -> None:
        raise ValueError

    executor = CurrentThreadExecutor(None)
    with without_gc():
        tracked: list[Any] = [Tracked()]
        alive = weakref.ref(tracked[0])
        call = submit(executor, fail, tracked.pop())
        executor.run_until_future(done())
        assert isinstance(call.exception(0), ValueError)
        del call
        assert alive() is None


# --- Interruptions ---------------------------------------------------------------


def test_run_until_future_again_after_an_interruption_goes_on() -> None:
    executor = CurrentThreadExecutor(None)
    future: Future[None] = Future()

    def interrupt() -> float:
        raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            executor._serve(future.done, interrupt, 0.0)
    call = submit(executor, lambda: "result")
    future.set_result(None)
    executor.run_until_future(future)
    assert call.result(0) == "result"


def test_run_until_future_interrupted_in_the_moment_of_its_end_does_not_wait_again() -> None:
    """P4: the thread has taken the end marker out of the queue, but has not returned yet."""

    class Queue:
        def __init__(self, executor: CurrentThreadExecutor) -> None:
            self.executor, self.queue = executor, executor._queue
            self.put = self.queue.put

        def get(self, timeout: float | None) -> Any:
            assert self.queue.get(timeout=10) is None
            self.executor._queue = self.queue
            raise Interrupted

    def interrupted_at_the_end() -> None:
        executor = CurrentThreadExecutor(None)
        executor._queue = cast("SimpleQueue[Any]", Queue(executor))
        future = done()
        with pytest.raises(Interrupted):
            executor.run_until_future(future)
        executor.run_until_future(future)

    run_in_thread(interrupted_at_the_end, timeout_seconds=3)


def test_run_until_future_after_an_interrupted_one_is_not_ended_by_what_that_left() -> None:
    """Each wait for a future sends an end marker, and an interrupted one leaves its own in the queue."""

    def interrupt() -> float:
        raise Interrupted

    def watch() -> float:
        looks.append(len(looks))
        if len(looks) == 3:
            second.set_result(None)
            executor._close()
        return 0.0

    executor = CurrentThreadExecutor(None)
    first: Future[None] = Future()
    second: Future[None] = Future()
    looks: list[int] = []
    for _ in range(2):
        with pytest.raises(Interrupted):
            executor._serve(first.done, interrupt, 0.0)
        executor._close()
    first.set_result(None)
    executor.run_until_future(first)
    executor._serve(second.done, watch, 0.0)
    assert looks == [0, 1, 2]


def test_abort_cancels_what_has_not_been_run_and_refuses_the_rest() -> None:
    executor = CurrentThreadExecutor(None)
    call = submit(executor, pytest.fail, "it ran")
    executor._abort()
    assert call.cancelled()
    with pytest.raises(_ExecutorEndedError):
        submit(executor, print)


def test_watch_is_called_until_the_future_is_done() -> None:
    executor = CurrentThreadExecutor(None)
    future: Future[None] = Future()
    looks: list[int] = []

    def watch() -> float:
        looks.append(len(looks))
        if len(looks) == 3:
            future.set_result(None)
            executor._close()
        return 0.0

    executor._serve(future.done, watch, 0.0)
    assert looks == [0, 1, 2]


# --- Submitting ------------------------------------------------------------------


def test_submit_from_the_waiting_thread_itself_raises_instead_of_waiting_for_itself() -> None:
    executor = CurrentThreadExecutor(None)
    with pytest.raises(RuntimeError, match="submitted from that thread itself"):
        executor.submit(print)


def test_submit_after_the_end_goes_to_the_nearest_executor_around_that_still_waits() -> None:
    root = CurrentThreadExecutor(None)
    middle = ended(root)
    inner = ended(middle)
    call = submit(inner, threading.get_ident)
    assert inner._nearest_open() is root
    root.run_until_future(done())
    assert call.result(0) == threading.get_ident()


def test_submit_when_all_have_ended_raises() -> None:
    inner = ended(ended())
    assert inner._nearest_open() is None
    with pytest.raises(RuntimeError, match="CurrentThreadExecutor already quit or is broken"):
        submit(inner, print)


def test_submit_while_the_executor_is_closing_goes_around_it() -> None:
    """It was open when asked, and is closed when the lock is free."""
    root = CurrentThreadExecutor(None)
    executor = CurrentThreadExecutor(root)
    lock = executor._lock

    def close() -> None:
        executor._lock = lock
        executor._close()

    executor._lock = cast("threading.RLock", HookedLock(lock, close))
    call = submit(executor, lambda: "result")
    executor.run_until_future(done())
    assert not call.done()
    root.run_until_future(done())
    assert call.result(0) == "result"


def test_submit_in_a_forked_child_finds_nobody_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = CurrentThreadExecutor(None)
    monkeypatch.setattr(_fork, "_epoch", _fork.epoch() + 1)
    assert executor._nearest_open() is None
    with pytest.raises(_ExecutorEndedError):
        submit(executor, print)


def test_return_from_a_function_in_a_forked_child_raises_instead_of_waiting_for_the_parent() -> (
    None
):
    executor = CurrentThreadExecutor(None)
    with pytest.MonkeyPatch.context() as patch:
        call = submit(executor, patch.setattr, _fork, "_epoch", _fork.epoch() + 1)
        with pytest.raises(RuntimeError, match=r"leave the child with os\._exit\(\)"):
            executor.run_until_future(Future())
    assert call.done()


def test_old_executor_is_the_one_around() -> None:
    outer = CurrentThreadExecutor(None)
    assert CurrentThreadExecutor(outer).old_executor is outer
    assert outer.old_executor is None
