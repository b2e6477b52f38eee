"""`Call`: whoever takes the claim first decides; each order of worker, cancellation and executor is forced."""

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, NoReturn, cast

import pytest

from django_asyncbridge.bridge import _call, _fork
from django_asyncbridge.bridge._call import Call, Children, Hold
from tests.bridge import ManualExecutor, Tracked, hand_driven_loop, turn, wait, without_gc
from tests.support import run_child, run_in_thread


class Submitted:
    """A call of `work` that waits in an executor which the test runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self.loop = loop
        self.executor = ManualExecutor()
        self.hold = Hold("tests.work")
        self.call = Call(loop, "tests.work", self.hold)
        self.call.submit(self.executor, work)

    def run(self) -> None:
        """Run the function as a worker does; the loop learns of it at its next turn."""
        self.executor.run_next()

    def turn(self) -> None:
        turn(self.loop)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with hand_driven_loop() as loop:
        yield loop


def raise_(error: BaseException) -> NoReturn:
    raise error


def must_not_run() -> NoReturn:
    raise AssertionError("it ran")


# --- Hold ------------------------------------------------------------------------


def test_hold_until_it_is_given_back_is_true() -> None:
    hold = Hold("tests.work")
    assert hold
    hold.active = False
    assert not hold


def test_hold_from_before_a_fork_is_false(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Hold("tests.work")
    monkeypatch.setattr(_fork, "_epoch", _fork.epoch() + 1)
    assert not hold


# --- The worker comes first ------------------------------------------------------


def test_call_that_the_worker_ran_gives_its_result_at_the_next_turn_of_the_loop(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, lambda: "result")
    submitted.run()
    assert not submitted.call.done()
    submitted.turn()
    assert submitted.call.result() == "result"


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), asyncio.CancelledError("x")])
def test_call_whose_function_raised_raises_the_same_object(
    loop: asyncio.AbstractEventLoop, error: BaseException
) -> None:
    submitted = Submitted(loop, lambda: raise_(error))
    submitted.run()
    submitted.turn()
    assert submitted.call.exception() is error


def test_call_whose_function_raised_stop_iteration_raises_runtime_error_with_it_as_cause(
    loop: asyncio.AbstractEventLoop,
) -> None:
    stop = StopIteration(1)
    submitted = Submitted(loop, lambda: raise_(stop))
    submitted.run()
    submitted.turn()
    error = submitted.call.exception()
    assert isinstance(error, RuntimeError)
    assert error.__cause__ is stop
    assert "tests.work raised StopIteration" in str(error)


def test_hold_when_the_function_has_ended_is_given_back_before_the_task_goes_on(
    loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[bool] = []
    submitted = Submitted(loop, lambda: seen.append(bool(submitted.hold)))
    submitted.run()
    assert seen == [True]
    assert not submitted.hold
    assert not submitted.call.done()
    submitted.turn()


def test_call_that_ran_is_not_changed_by_what_its_executor_does_later(
    loop: asyncio.AbstractEventLoop,
) -> None:
    call = Call(loop, "tests.work", None)
    queued: Future[None] = Future()

    class Late(Executor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            function()
            return queued

    call.submit(Late(), lambda: "result")
    queued.set_exception(ValueError("the pool broke after the call had run"))
    turn(loop)
    assert call.result() == "result"


@pytest.mark.parametrize("after", [False, True])
def test_call_interrupted_as_it_hands_over_tells_the_task_what_it_can(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """The worker is a main thread: a signal handler raises in it, before or after it has woken the loop."""
    wake = loop.call_soon_threadsafe

    def interrupted(*args: Any) -> NoReturn:
        monkeypatch.setattr(loop, "call_soon_threadsafe", wake)
        if after:
            wake(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    submitted = Submitted(loop, lambda: "result")
    submitted.run()
    submitted.turn()
    assert not submitted.hold
    if after:
        assert submitted.call.result() == "result"
    else:
        assert isinstance(submitted.call.exception(), KeyboardInterrupt)


def test_call_without_an_executor_runs_in_the_loops_default_one() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="default"))
        call = Call(loop, "tests.work", None)
        call.submit(None, lambda: threading.current_thread().name)
        name: str = await call
        return name

    assert asyncio.run(main()).startswith("default")


def test_call_with_an_error_once_it_is_dropped_is_freed_without_the_garbage_collector(
    loop: asyncio.AbstractEventLoop,
) -> None:
    def fail() -> None:
        tracked = Tracked()
        alive.append(weakref.ref(tracked))
        raise ValueError

    alive: list[weakref.ref[Any]] = []
    with without_gc():
        submitted = Submitted(loop, fail)
        alive.append(weakref.ref(submitted.call))
        # Not by methods of `submitted`: their frames are in the traceback, and know the call.
        submitted.executor.run_next()
        turn(loop)
        with pytest.raises(ValueError):
            submitted.call.result()
        del submitted
        assert [ref() for ref in alive] == [None, None]


# --- A cancellation comes first, comes in between, comes late --------------------


def test_cancel_before_the_worker_claims_withdraws_the_call_for_good(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, must_not_run)
    ((queued, _),) = submitted.executor.queue
    assert submitted.call.cancel("why")
    assert submitted.call.cancelled()
    assert queued.cancelled()
    assert not submitted.hold
    submitted.run()
    # An executor that cannot cancel comes to it all the same.
    submitted.call.run()
    submitted.turn()


def test_cancel_when_a_thread_of_the_loops_executor_is_about_to_claim_withdraws_the_call(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The pool can no longer cancel what its thread has taken, but not yet begun."""

    class Pool(ThreadPoolExecutor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            taken.append(function)
            future: Future[Any] = Future()
            future.set_running_or_notify_cancel()
            return future

    taken: list[Callable[[], Any]] = []
    loop.set_default_executor(Pool(1))
    call = Call(loop, "tests.work", None)
    call.submit(None, must_not_run)
    call.cancel()
    turn(loop, 2)
    taken.pop()()
    turn(loop)
    assert call.cancelled()


def test_cancel_before_submit_withdraws_the_call(loop: asyncio.AbstractEventLoop) -> None:
    call = Call(loop, "tests.work", None)
    assert call.cancel()
    call.submit(executor := ManualExecutor(), must_not_run)
    executor.run_next()
    turn(loop)
    assert call.cancelled()


def test_cancel_while_the_function_runs_takes_effect_when_it_has_ended(
    loop: asyncio.AbstractEventLoop,
) -> None:
    def work() -> None:
        assert submitted.call.cancel("why")
        assert not submitted.call.done()

    submitted = Submitted(loop, work)
    submitted.run()
    assert not submitted.call.done()
    submitted.turn()
    with pytest.raises(asyncio.CancelledError, match="why"):
        submitted.call.result()
    assert submitted.call.lost_error is None


def test_cancel_after_the_function_has_ended_but_before_the_loop_knows_takes_effect(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, lambda: "lost result")
    submitted.run()
    assert submitted.call.cancel()
    assert not submitted.call.done()
    submitted.turn()
    assert submitted.call.cancelled()


def test_cancel_twice_while_the_function_runs_keeps_the_last_message(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, lambda: submitted.call.cancel("first"))
    submitted.run()
    assert submitted.call.cancel("second")
    submitted.turn()
    with pytest.raises(asyncio.CancelledError, match="second"):
        submitted.call.result()


def test_cancel_of_a_call_that_is_done_says_no(loop: asyncio.AbstractEventLoop) -> None:
    submitted = Submitted(loop, lambda: "result")
    submitted.run()
    submitted.turn()
    assert not submitted.call.cancel()
    assert submitted.call.result() == "result"


@pytest.mark.parametrize("error", [ValueError("x"), asyncio.CancelledError()])
def test_cancelled_call_whose_function_raised_is_cancelled_and_remembers_an_exception(
    loop: asyncio.AbstractEventLoop, error: BaseException
) -> None:
    submitted = Submitted(loop, lambda: raise_(error))
    submitted.run()
    submitted.call.cancel()
    submitted.turn()
    assert submitted.call.cancelled()
    assert submitted.call.lost_error is (error if isinstance(error, Exception) else None)


def test_cancelled_call_whose_function_asked_for_the_exit_raises_system_exit(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, lambda: raise_(SystemExit(3)))
    submitted.run()
    submitted.call.cancel()
    submitted.turn()
    assert isinstance(submitted.call.exception(), SystemExit)


def test_cancelled_function_that_is_overdue_is_reported_with_its_thread_and_stack(
    loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_call, "_OVERDUE_SECONDS", 0.0)
    begun, release = threading.Event(), threading.Event()

    def slow_function() -> None:
        begun.set()
        wait(release)

    submitted = Submitted(loop, slow_function)
    thread = threading.Thread(target=submitted.run, name="busy-thread")
    thread.start()
    wait(begun)
    submitted.call.cancel()
    turn(loop, 2)
    release.set()
    thread.join()
    submitted.turn()
    assert submitted.call.cancelled()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "django_asyncbridge.bridge.sync"
    for expected in ("tests.work", "busy-thread", "in slow_function"):
        assert expected in record.getMessage()


def test_cancelled_function_that_is_overdue_in_a_thread_that_has_ended_is_reported_without_stack(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    submitted = Submitted(loop, lambda: None)
    run_in_thread(submitted.run)
    submitted.call.cancel()
    # The loop gets to the report in the turn in which it would get to the end of the call next.
    submitted.call._report_overdue()
    submitted.turn()
    (record,) = caplog.records
    assert record.getMessage().endswith("ends when it does")


def test_cancelled_function_that_ends_in_time_is_not_reported(
    loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_call, "_OVERDUE_SECONDS", 0.0)
    submitted = Submitted(loop, lambda: submitted.call.cancel("why"))
    submitted.run()
    turn(loop, 3)
    assert caplog.records == []


def test_cancelled_call_that_its_executor_is_dropping_is_not_reported_as_running(
    loop: asyncio.AbstractEventLoop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(_call, "_OVERDUE_SECONDS", 0.0)
    submitted = Submitted(loop, must_not_run)

    class Dropping(Future[None]):
        """The thread that drops the call has the claim, and is slow to say so to the loop."""

        def exception(self, timeout: float | None = None) -> BaseException | None:
            submitted.call.cancel()
            turn(loop, 2)
            return ValueError("dropped")

    submitted.call.dropped(Dropping())
    submitted.turn()
    assert submitted.call.cancelled()
    assert caplog.records == []


# --- The executor comes first ----------------------------------------------------


def test_submit_to_an_executor_that_refuses_raises_and_gives_the_hold_back(
    loop: asyncio.AbstractEventLoop,
) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    hold = Hold("tests.work")
    call = Call(loop, "tests.work", hold)
    with pytest.raises(RuntimeError, match="shutdown"):
        call.submit(pool, must_not_run)
    assert not hold


def test_call_that_its_executor_fails_raises_the_executors_error(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, must_not_run)
    error = ValueError("broken pool")
    submitted.executor.drop_next(error)
    assert not submitted.hold
    submitted.turn()
    assert submitted.call.exception() is error


def test_call_that_was_cancelled_and_then_fails_in_its_executor_stays_cancelled(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, must_not_run)
    dropping = submitted.call.dropped
    submitted.call.cancel()
    dropped: Future[None] = Future()
    dropped.set_exception(ValueError("broken pool"))
    dropping(dropped)
    submitted.turn()
    assert submitted.call.cancelled()


def test_call_that_its_executor_cancels_at_its_shutdown_ends_cancelled(
    loop: asyncio.AbstractEventLoop,
) -> None:
    begun, release = threading.Event(), threading.Event()

    def occupy() -> None:
        begun.set()
        wait(release)

    pool = ThreadPoolExecutor(1)
    pool.submit(occupy)
    wait(begun)
    call = Call(loop, "tests.work", None)
    call.submit(pool, must_not_run)
    pool.shutdown(wait=False, cancel_futures=True)
    release.set()
    pool.shutdown()
    turn(loop)
    with pytest.raises(asyncio.CancelledError, match=r"the executor of tests\.work cancelled it"):
        call.result()


def test_call_to_a_pool_whose_initializer_fails_raises_broken_thread_pool(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        call = Call(asyncio.get_running_loop(), "tests.work", None)
        with ThreadPoolExecutor(1, initializer=raise_, initargs=(ValueError(),)) as pool:
            call.submit(pool, must_not_run)
            with pytest.raises(BrokenThreadPool):
                await call

    asyncio.run(main())
    # The pool's own report of its initializer.
    assert {record.name for record in caplog.records} == {"concurrent.futures"}


def test_call_to_a_process_pool_cannot_be_pickled_and_raises_type_error() -> None:
    child = run_child(
        """
        import asyncio, multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from django_asyncbridge.bridge.sync import sync_to_async

        async def main():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                try:
                    await sync_to_async(print, thread_sensitive=False, executor=pool)("ran")
                except TypeError as error:
                    print(error)

        asyncio.run(main())
        """
    )
    assert "cannot pickle" in child.stdout


# --- The loop is gone ------------------------------------------------------------


def test_call_that_ends_while_the_loop_is_stopped_completes_when_it_runs_again(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, lambda: "result")
    submitted.turn()
    run_in_thread(submitted.run)
    assert not submitted.call.done()
    submitted.turn()
    assert submitted.call.result() == "result"


@pytest.mark.parametrize("error", [None, ValueError("lost")])
def test_call_that_ends_after_its_loop_was_closed_gives_its_hold_back_and_is_logged(
    error: ValueError | None, caplog: pytest.LogCaptureFixture
) -> None:
    with hand_driven_loop() as loop:
        submitted = Submitted(loop, lambda: error and raise_(error))
    submitted.run()
    assert not submitted.hold
    assert not submitted.call.done()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "after the event loop that waited for it was closed" in record.getMessage()
    assert (record.exc_info and record.exc_info[1]) is error


# --- Nobody waits any more -------------------------------------------------------


def test_abandon_before_the_worker_claims_withdraws_the_call(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, must_not_run)
    submitted.call.abandon()
    assert not submitted.hold
    submitted.run()
    submitted.turn()
    assert not submitted.call.done()


def test_abandon_while_the_function_runs_lets_it_run_and_keeps_its_hold(
    loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[bool] = []

    def work() -> None:
        submitted.call.abandon()
        seen.append(bool(submitted.hold))

    submitted = Submitted(loop, work)
    submitted.run()
    submitted.turn()
    assert seen == [True]
    assert submitted.call.result() is None


# --- Children --------------------------------------------------------------------


async def forever() -> None:
    await asyncio.Event().wait()


def test_children_cancel_cancels_the_task_that_is_waited_for_in_the_thread_of_its_loop() -> None:
    async def main() -> bool:
        task = asyncio.create_task(forever())
        children = Children()
        children.append(task)
        # From another thread: the loop has to be woken.
        await asyncio.to_thread(children.cancel)
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(main())


def test_children_cancel_while_nobody_is_waited_for_cancels_the_next_one_only(
    loop: asyncio.AbstractEventLoop,
) -> None:
    children = Children()
    children.cancel()
    first, second = loop.create_task(forever()), loop.create_task(forever())
    for task in (first, second):
        children.append(task)
        turn(loop, 2)
        children.remove(task)
    assert first.cancelled()
    assert not second.done()
    second.cancel()
    turn(loop, 2)


def test_children_cancel_that_meets_a_task_about_to_end_goes_to_the_next_one(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The task is still in the list, but is done when its loop comes to cancel it."""

    async def end() -> None:
        await asyncio.sleep(0)
        children.remove(first)

    children = Children()
    first = loop.create_task(end())
    children.append(first)
    turn(loop)
    children.cancel()
    turn(loop)
    assert first.done()
    second = loop.create_task(forever())
    children.append(second)
    turn(loop, 2)
    assert second.done()


def test_children_cancel_of_a_task_whose_loop_is_closed_does_nothing() -> None:
    with hand_driven_loop() as loop:
        task = loop.create_task(forever())
        turn(loop)
        children = Children()
        children.append(task)
    children.cancel()
    assert children == [task]
    cast("Coroutine[Any, Any, Any]", task.get_coro()).close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # it is destroyed on purpose
