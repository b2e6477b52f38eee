"""`Call`: whoever takes the work first decides; each order of worker, cancellation and executor is forced."""

import asyncio
import contextvars
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from typing import Any, NoReturn, cast

import pytest

from django_asyncbridge.bridge import _call, _fork
from django_asyncbridge.bridge._call import Call, _Link
from django_asyncbridge.bridge._children import Children, Hold
from django_asyncbridge.bridge._work import Work, WorkExecutor
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from tests.bridge import ManualExecutor, Tracked, hand_driven_loop, turn, wait, without_gc
from tests.support import run_in_thread

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


class Submitted:
    """A call of `work` that waits in an executor which the test runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self.loop = loop
        self.executor = ManualExecutor()
        self.hold = Hold("tests.work")
        self.call = Call(loop, "tests.work", self.hold)
        self.call.submit(self.executor, work)
        #: What the call told whoever waits for it.
        self.told: list[Call] = []
        self.call.add_done_callback(self.told.append)

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


def error_of(call: Call) -> BaseException:
    """Return what the call raises; it says so once."""
    try:
        call.result()
    except BaseException as error:
        return error
    raise AssertionError("it raises nothing")


class Posted(WorkExecutor):
    """An executor of ours, whose one piece of work the test runs."""

    def __init__(self) -> None:
        self.work: list[Work] = []

    def post(self, work: Work) -> None:
        self.work.append(work)

    def run(self) -> None:
        work = self.work.pop()
        work.run()
        work.deliver()


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
    monkeypatch.setattr(_fork, "_pid", _fork.pid() + 1)
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
    assert error_of(submitted.call) is error


def test_call_whose_function_raised_stop_iteration_raises_runtime_error_with_it_as_cause(
    loop: asyncio.AbstractEventLoop,
) -> None:
    stop = StopIteration(1)
    submitted = Submitted(loop, lambda: raise_(stop))
    submitted.run()
    submitted.turn()
    error = error_of(submitted.call)
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
    told: list[Call] = []
    call.add_done_callback(told.append)
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

    executor = CurrentThreadExecutor(None)
    hold = Hold("tests.work")
    call = Call(loop, "tests.work", hold)
    told: list[Call] = []
    call.add_done_callback(told.append)
    run_in_thread(lambda: call.submit(executor, lambda: "result"))
    future: Future[None] = Future()
    future.set_result(None)
    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        executor.run_until_future(future)
    turn(loop)
    assert not hold
    assert told == [call]
    # Who has been told of a result as well as of an interruption may see either.
    assert after or isinstance(error_of(call), KeyboardInterrupt)


@pytest.mark.parametrize("after", [False, True])
def test_call_interrupted_as_a_foreign_executor_hands_it_over_tells_the_task_what_it_can(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """As in asgiref's CurrentThreadExecutor, in the main thread."""
    wake = loop.call_soon_threadsafe

    def interrupted(*args: Any) -> NoReturn:
        monkeypatch.setattr(loop, "call_soon_threadsafe", wake)
        if after:
            wake(*args)
        raise KeyboardInterrupt

    submitted = Submitted(loop, lambda: "result")
    monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submitted.run()
    submitted.turn()
    assert not submitted.hold
    assert submitted.told == [submitted.call]
    assert after or isinstance(error_of(submitted.call), KeyboardInterrupt)


def test_call_that_nobody_awaits_yet_completes_all_the_same(
    loop: asyncio.AbstractEventLoop,
) -> None:
    call = Call(loop, "tests.work", None)
    call.submit(executor := ManualExecutor(), lambda: "result")
    executor.run_next()
    turn(loop)
    assert call.result() == "result"


def test_call_in_an_executor_of_ours_is_posted_as_it_is(loop: asyncio.AbstractEventLoop) -> None:
    call = Call(loop, "tests.work", None)
    call.submit(executor := Posted(), lambda: "result")
    assert executor.work == [call]
    assert (call.wanted(), call.ran) == (True, False)
    told: list[Call] = []
    call.add_done_callback(told.append)
    executor.run()
    assert (call.wanted(), call.ran) == (False, True)
    turn(loop)
    assert told == [call]
    assert call.result() == "result"


def test_call_tells_the_first_who_waits_in_its_own_step_and_the_others_after_it(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """One task waits for it, and goes on without another turn of the loop; each in its own context."""
    log: list[object] = []

    def note(name: str) -> Callable[[Call], None]:
        return lambda call: log.append((name, variable.get("none"), call.done()))

    submitted = Submitted(loop, lambda: None)
    submitted.call.add_done_callback(note("second"))
    own = contextvars.Context()
    own.run(variable.set, "own")
    submitted.call.add_done_callback(note("third"), context=own)
    other = Call(loop, "tests.work", None)
    other.add_done_callback(note("first"), context=own)
    other.submit(executor := Posted(), lambda: None)
    executor.run()
    submitted.run()
    loop.call_soon(log.append, "next")
    submitted.turn()
    assert log == [("first", "own", True), "next"]
    submitted.turn()
    assert log[2:] == [("second", "none", True), ("third", "own", True)]
    submitted.call.add_done_callback(note("late"))
    assert log[4:] == []
    submitted.turn()
    assert log[4:] == [("late", "none", True)]


def test_call_awaited_goes_on_in_the_turn_that_hears_of_it(
    loop: asyncio.AbstractEventLoop,
) -> None:
    async def main() -> Any:
        return await call

    call = Call(loop, "tests.work", None)
    assert call.get_loop() is loop
    assert asyncio.isfuture(call)
    call.submit(executor := Posted(), lambda: "result")
    task = loop.create_task(main())
    turn(loop)
    executor.run()
    turn(loop)
    assert task.result() == "result"


def test_call_awaited_when_it_is_done_does_not_wait(loop: asyncio.AbstractEventLoop) -> None:
    async def main() -> Any:
        return await submitted.call

    submitted = Submitted(loop, lambda: "result")
    submitted.run()
    submitted.turn()
    task = loop.create_task(main())
    submitted.turn()
    assert task.result() == "result"


def test_call_whose_task_is_woken_too_early_says_so(loop: asyncio.AbstractEventLoop) -> None:
    submitted = Submitted(loop, lambda: "result")
    waiting = submitted.call.__await__()
    assert next(waiting) is submitted.call
    with pytest.raises(RuntimeError, match=r"waits for tests\.work was woken too early"):
        next(waiting)


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
        submitted.told.clear()
        with pytest.raises(ValueError):
            submitted.call.result()
        del submitted
        assert [ref() for ref in alive] == [None, None]


# --- A cancellation comes first, comes in between, comes late --------------------


def test_cancel_before_the_worker_takes_the_work_withdraws_the_call_for_good(
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
    submitted.call.deliver()
    submitted.turn()
    assert submitted.told == [submitted.call]


def test_cancel_when_a_thread_of_an_executor_is_about_to_begin_withdraws_the_call(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The pool can no longer cancel what its thread has taken, but not yet begun."""

    class Pool(Executor):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            taken.append(function)
            future: Future[Any] = Future()
            future.set_running_or_notify_cancel()
            return future

    taken: list[Callable[[], Any]] = []
    call = Call(loop, "tests.work", None)
    call.submit(Pool(), must_not_run)
    call.cancel()
    turn(loop, 2)
    taken.pop()()
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
    assert isinstance(error_of(submitted.call), SystemExit)


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


def test_cancelled_function_that_is_overdue_in_a_thread_that_has_ended_is_not_reported(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    submitted = Submitted(loop, lambda: None)
    run_in_thread(submitted.run)
    submitted.call.cancel()
    # The loop gets to the report in the turn in which it would get to the end of the call next.
    submitted.call._report_overdue()
    submitted.turn()
    assert submitted.call.cancelled()
    assert caplog.records == []


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
    """The thread that drops the call has taken its work, and is slow to say so to the loop."""
    monkeypatch.setattr(_call, "_OVERDUE_SECONDS", 0.0)
    submitted = Submitted(loop, must_not_run)
    deliver = submitted.call.deliver

    def deliver_late() -> None:
        submitted.call.cancel()
        turn(loop, 2)
        assert not submitted.call.done()
        deliver()

    monkeypatch.setattr(submitted.call, "deliver", deliver_late)
    submitted.call.drop(ValueError("dropped"))
    submitted.turn()
    assert submitted.call.cancelled()
    assert not submitted.call.ran
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
    assert error_of(submitted.call) is error


def test_call_that_was_cancelled_and_then_fails_in_its_executor_stays_cancelled(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, must_not_run)
    submitted.call.cancel()
    submitted.call.drop(ValueError("broken pool"))
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
    told: list[Call] = []
    call.add_done_callback(told.append)
    pool.shutdown(wait=False, cancel_futures=True)
    release.set()
    pool.shutdown()
    turn(loop)
    assert told == [call]
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


def test_abandon_before_the_worker_takes_the_work_withdraws_the_call(
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


def test_call_says_what_its_task_saw(loop: asyncio.AbstractEventLoop) -> None:
    returned, raised, cancelled = (
        Submitted(loop, work) for work in (int, lambda: raise_(ValueError()), must_not_run)
    )
    assert [returned.call.outcome] == ["cancelled"]
    returned.run()
    raised.run()
    cancelled.call.cancel()
    turn(loop)
    assert returned.call.result() == 0
    assert isinstance(error_of(raised.call), ValueError)
    calls = returned.call, raised.call, cancelled.call
    assert [call.outcome for call in calls] == ["returned", "raised", "cancelled"]


def test_link_of_a_call_that_its_executor_runs_after_it_failed_does_nothing(
    loop: asyncio.AbstractEventLoop,
) -> None:
    submitted = Submitted(loop, must_not_run)
    link = _Link(submitted.call)
    future: Future[None] = Future()
    error = ValueError("dropped")
    future.set_exception(error)
    link.dropped(future)
    link.run()
    submitted.turn()
    assert error_of(submitted.call) is error


@pytest.mark.parametrize("error", [None, ValueError("late"), SystemExit(3)])
def test_call_abandoned_when_cancelled_lets_the_task_go_and_logs_what_is_raised_later(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture, error: BaseException | None
) -> None:
    def work() -> None:
        assert call.cancel("why")
        assert call.cancelled()
        assert call.children.cancelled
        assert not call.ended()
        if error is not None:
            raise error

    told: list[Call] = []
    call = Call(loop, "tests.work", None, abandon_on_cancel=True)
    call.add_done_callback(told.append)
    call.submit(executor := Posted(), work)
    executor.run()
    turn(loop, 2)
    assert told == [call]
    with pytest.raises(asyncio.CancelledError, match="why"):
        call.result()
    expected = [error] if isinstance(error, Exception) else []
    assert [record.exc_info and record.exc_info[1] for record in caplog.records] == expected
    assert all("after its call was abandoned" in record.getMessage() for record in caplog.records)


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


def test_children_cancel_of_a_task_that_leaves_before_its_loop_turns_goes_to_the_next_one(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """The loop of a top-level call stops with its coroutine and may not turn again for long."""
    children = Children()
    first, second = loop.create_task(forever()), loop.create_task(forever())
    children.append(first)
    children.cancel()
    children.remove(first)
    assert children.join(second)
    # What the loop was told is of no use any more, whenever it turns.
    turn(loop, 2)
    assert not first.done()
    assert not second.done()
    for task in (first, second):
        task.cancel()
    turn(loop, 2)


def test_children_cancel_that_the_function_knows_of_is_not_handed_on(
    loop: asyncio.AbstractEventLoop,
) -> None:
    children = Children()
    first, second = loop.create_task(forever()), loop.create_task(forever())
    children.append(first)
    children.cancel()
    children.note()
    children.remove(first)
    assert not children.join(second)
    for task in (first, second):
        task.cancel()
    turn(loop, 2)


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
