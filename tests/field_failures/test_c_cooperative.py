"""Section C: what becomes of a sync function whose caller is gone: it is asked to stop, waited for, or abandoned."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, Token
from typing import Any

import pytest

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    WorkerPool,
    async_to_sync,
    cancelled,
    check_cancelled,
    sync_to_async,
)
from tests.field_failures.common import (
    HOMES,
    Main,
    Work,
    end_of,
    loop_turns,
    noop,
    on_plain_loop,
    traces,
    until,
)
from tests.support import run_child, run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
Home = Callable[[Main[Any]], Any]
LOGGER = "django_asyncbridge.bridge.sync"
variable = ContextVar("variable", default="unset")


@pytest.fixture
def pool(work: Work) -> Iterator[WorkerPool]:
    """Return a pool of one worker, which has ended after the test."""
    pool = WorkerPool("tested", maximum=1)
    yield pool
    work.release.set()
    pool.shutdown()


def abandoning(function: Callable[..., Any], pool: WorkerPool | None = None) -> Any:
    """Wrap `function` so that a cancelled task does not wait for it."""
    return sync_to_async(function, thread_sensitive=False, executor=pool, abandon_on_cancel=True)


async def cancelled_at_once(call: Coroutine[Any, Any, Any], started: threading.Event) -> None:
    """Make a call from a task and cancel that while the function runs; it must end without waiting."""
    task = asyncio.create_task(call)
    await until(started)
    task.cancel()
    await loop_turns()
    assert task.cancelled()


async def ended(pool: WorkerPool) -> None:
    """Wait until the pool's worker has ended, and with it what it ran, and the loop knows."""
    await asyncio.to_thread(pool.shutdown)
    await loop_turns()


class Cooperative:
    """A sync view that works in small pieces and looks in between whether anybody still waits."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.effects: list[str] = []
        self.thread = 0

    def __call__(self) -> None:
        self.thread = threading.get_ident()
        self.started.set()
        try:
            for _ in range(10_000):
                check_cancelled()
                time.sleep(0.001)
            raise AssertionError("never stopped")
        finally:
            self.effects.append("function ended")


# --- C27: sync code learns of it -----------------------------------------------------------


@each_home
@pytest.mark.parametrize("thread_sensitive", [True, False])
def test_c27_view_stops_when_its_client_has_left(home: Home, thread_sensitive: bool) -> None:
    """C27: the request's task is cancelled, the view stops at its next look, nothing holds the request."""
    view = Cooperative()

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(view, thread_sensitive=thread_sensitive)())
        await until(view.started)
        task.cancel()
        assert isinstance(await end_of(task), asyncio.CancelledError)
        assert task.cancelled()
        view.effects.append("request ended")

    home(main)
    assert view.effects == ["function ended", "request ended"]


@each_home
def test_c27_view_that_asks_may_save_what_it_has_instead_of_raising(home: Home) -> None:
    """C27: `cancelled` for those who want to end in their own way; the request ends cancelled."""
    saved: list[str] = []
    started = threading.Event()

    async def save(what: str) -> None:
        await asyncio.sleep(0)
        saved.append(what)

    def view() -> str:
        started.set()
        while not cancelled():
            time.sleep(0.001)
        with contextlib.suppress(asyncio.CancelledError):
            check_cancelled()
        async_to_sync(save)("half of it")
        return "partial"

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(view)())
        await until(started)
        task.cancel()
        await end_of(task)
        assert task.cancelled()

    home(main)
    assert saved == ["half of it"]


def test_c27_view_below_sync_and_async_middleware_stops_too() -> None:
    """C27: Django's usual order: sync middleware around an async view that calls sync code."""
    view = Cooperative()
    layers: list[str] = []

    async def async_view() -> None:
        await sync_to_async(view)()

    def middleware() -> None:
        try:
            async_to_sync(async_view)()
        except asyncio.CancelledError:
            layers.append("middleware")
            raise

    async def main() -> None:
        async with ThreadSensitiveContext():
            task = asyncio.create_task(sync_to_async(middleware)())
            await until(view.started)
            task.cancel()
            await end_of(task)
            assert task.cancelled()

    on_plain_loop(main)
    assert view.effects == ["function ended"]
    assert layers == ["middleware"]


@each_home
def test_c27_generator_stops_when_its_consumer_has_left(home: Home) -> None:
    """C27: a streamed answer: the generator works on its next item when the client leaves."""
    started = threading.Event()
    log: list[str] = []

    def generate() -> Iterator[int]:
        try:
            yield 1
            started.set()
            while True:
                check_cancelled()
                assert time.monotonic() < end
                time.sleep(0.001)
        except asyncio.CancelledError:
            log.append("stopped")
            raise
        finally:
            log.append("closed")

    end = time.monotonic() + 10

    async def consume() -> None:
        async for _ in sync_to_async(generate)():
            pass

    async def main() -> None:
        task = asyncio.create_task(consume())
        await until(started)
        task.cancel()
        await end_of(task)
        assert task.cancelled()

    home(main)
    assert log == ["stopped", "closed"]


def test_c27_stopping_is_no_news_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """C27, P5: a client that left is no error, and neither is a view that stopped for that."""
    view = Cooperative()

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(view)())
        await until(view.started)
        task.cancel()
        await end_of(task)

    with caplog.at_level(logging.INFO):
        on_plain_loop(main)
    assert caplog.records == []


# --- C28, C29: no orphan holds a thread or a request ---------------------------------------


async def timed_out(call: Coroutine[Any, Any, Any], started: threading.Event) -> None:
    """Make a call under a deadline that comes as soon as the function runs."""

    async def expire() -> None:
        await until(started)
        limit.reschedule(asyncio.get_running_loop().time())

    expired = False
    try:
        async with asyncio.timeout(None) as limit:
            expiring = asyncio.create_task(expire())
            await call
    except TimeoutError:
        expired = True
    await expiring
    assert expired
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@each_home
def test_c28_after_a_timeout_the_thread_is_free_because_the_function_stopped(home: Home) -> None:
    """C28: the next thread-sensitive call finds its thread at once, and it is the same one."""
    view = Cooperative()

    async def main() -> int:
        await timed_out(sync_to_async(view)(), view.started)
        view.effects.append("timed out")
        return await sync_to_async(threading.get_ident)()

    assert home(main) == view.thread
    assert view.effects == ["function ended", "timed out"]


@each_home
def test_c28_wait_for_around_a_function_that_does_not_ask_ends_when_that_ends(
    home: Home, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C28: there is no orphan: what comes after the timeout comes after the function."""
    ahead_seconds = 0.0

    async def main() -> None:
        nonlocal ahead_seconds
        loop = asyncio.get_running_loop()
        time_of_loop = loop.time
        monkeypatch.setattr(loop, "time", lambda: time_of_loop() + ahead_seconds)
        task = asyncio.create_task(asyncio.wait_for(sync_to_async(work)(), 100))
        await until(work.started)
        ahead_seconds = 200
        loop.call_later(0.01, work.release.set)
        assert isinstance(await end_of(task), TimeoutError)
        await sync_to_async(work.effects.append)("next call")

    home(main)
    assert work.effects == ["function ended", "next call"]


@each_home
def test_c28_after_a_timeout_of_an_abandoned_call_nobody_waits(
    home: Home, work: Work, pool: WorkerPool
) -> None:
    """C28: for code that can neither ask nor be waited for: it keeps a worker, not the home thread."""

    async def main() -> None:
        await timed_out(abandoning(work, pool)(), work.started)
        await sync_to_async(work.effects.append)("next call")
        work.release.set()
        await ended(pool)

    home(main)
    assert work.effects == ["next call", "function ended"]


def test_c29_deadline_around_a_request_ends_the_request_when_its_function_stops() -> None:
    """C29: the context is left without an orphan in its thread; the thread is free for the next request."""
    view = Cooperative()
    threads = WorkerPool("requests", maximum=1)

    async def request() -> None:
        async with ThreadSensitiveContext(executor=threads):
            await sync_to_async(view)()

    async def main() -> int:
        await timed_out(request(), view.started)
        view.effects.append("request ended")
        async with ThreadSensitiveContext(executor=threads):
            return await sync_to_async(threading.get_ident)()

    assert on_plain_loop(main) == view.thread
    assert view.effects == ["function ended", "request ended"]
    threads.shutdown()


def test_c29_deadline_around_a_request_with_an_abandoned_call_ends_the_request_at_once(
    work: Work, pool: WorkerPool
) -> None:
    """C29: leaving the context does not wait for it either."""

    async def request() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(noop)()
            await abandoning(work, pool)()

    async def main() -> None:
        await timed_out(request(), work.started)
        work.effects.append("request ended")
        work.release.set()
        await ended(pool)

    on_plain_loop(main)
    assert work.effects == ["request ended", "function ended"]


# --- C30: structured concurrency -----------------------------------------------------------


async def group_that_fails(call: Coroutine[Any, Any, Any], started: threading.Event) -> None:
    """Run a call in a task group whose other task fails while the function runs."""

    async def fail() -> None:
        await until(started)
        raise ValueError("expected")

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(call)
            group.create_task(fail())

    with pytest.raises(ExceptionGroup) as caught:
        await both()
    assert [str(error) for error in caught.value.exceptions] == ["expected"]


@each_home
def test_c30_task_group_ends_as_soon_as_its_function_stops(home: Home) -> None:
    """C30: nothing that the group started goes on after it, and nobody waits longer than needed."""
    view = Cooperative()

    async def main() -> None:
        await group_that_fails(sync_to_async(view)(), view.started)
        view.effects.append("group ended")

    home(main)
    assert view.effects == ["function ended", "group ended"]


@each_home
def test_c30_task_group_outlived_by_a_function_only_if_that_was_asked_for(
    home: Home, work: Work, pool: WorkerPool
) -> None:
    """C30: `abandon_on_cancel` says that the effects may come later."""

    async def main() -> None:
        await group_that_fails(abandoning(work, pool)(), work.started)
        work.effects.append("group ended")
        work.release.set()
        await ended(pool)

    home(main)
    assert work.effects == ["group ended", "function ended"]


# --- C31: errors of those nobody waits for -------------------------------------------------


def the_only_warning(caplog: pytest.LogCaptureFixture) -> BaseException | None:
    """Return the error in the one record there is, which must be a warning of the bridge's."""
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.WARNING)
    return record.exc_info[1] if record.exc_info else None


@each_home
def test_c31_exception_of_an_abandoned_function_is_logged_once_as_a_warning(
    home: Home, work: Work, pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    """C31: nobody can catch it, so the log has it, with the function's name."""
    work.error = ValueError("after the cancellation")

    async def main() -> None:
        await cancelled_at_once(abandoning(work, pool)(), work.started)
        work.release.set()
        await ended(pool)

    with caplog.at_level(logging.INFO):
        home(main)
    assert the_only_warning(caplog) is work.error
    assert "Work" in caplog.messages[0]
    assert "abandoned" in caplog.messages[0]


def test_c31_exception_of_an_abandoned_function_is_logged_when_its_loop_runs_no_more(
    work: Work, pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    """C31: the thread's own loop is kept for its next `async_to_sync`, which may never come."""
    work.error = ValueError("after the cancellation")

    async def main() -> None:
        await cancelled_at_once(abandoning(work, pool)(), work.started)

    def caller() -> None:
        async_to_sync(main)()
        work.release.set()
        pool.shutdown()
        assert the_only_warning(caplog) is work.error

    run_in_thread(caller)


def test_c31_abandoned_function_that_ends_well_or_cancelled_is_not_logged(
    work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    """C31: there is nothing to tell."""
    view = Cooperative()

    async def main() -> None:
        pool = WorkerPool("tested")
        await cancelled_at_once(abandoning(work, pool)(), work.started)
        await cancelled_at_once(abandoning(view, pool)(), view.started)
        work.release.set()
        await ended(pool)

    with caplog.at_level(logging.INFO):
        on_plain_loop(main)
    assert work.effects == view.effects == ["function ended"]
    assert caplog.records == []


@pytest.mark.parametrize("fails", [False, True])
def test_c31_abandoned_function_that_outlives_its_loop_is_a_warning_and_nothing_else(
    work: Work, pool: WorkerPool, caplog: pytest.LogCaptureFixture, fails: bool
) -> None:
    """C31: nobody wanted the result; the error is in the log although the loop is closed."""
    work.error = ValueError("after the loop") if fails else None
    unhandled: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unhandled.append(what))
        await cancelled_at_once(abandoning(work, pool)(), work.started)

    with caplog.at_level(logging.INFO):
        on_plain_loop(main)
        assert work.effects == []
        work.release.set()
        pool.shutdown()
    assert work.effects == ["function ended"]
    assert unhandled == []
    if fails:
        assert the_only_warning(caplog) is work.error
    else:
        assert caplog.records == []


def test_c31_exception_of_a_function_that_is_waited_for_is_the_cause_and_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """C31: without `abandon_on_cancel`: the clean-up of a view that stopped has failed."""
    started = threading.Event()
    caught: list[BaseException] = []

    def view() -> None:
        started.set()
        while not cancelled():
            time.sleep(0.001)
        raise ValueError("in the clean-up")

    async def request() -> None:
        try:
            await sync_to_async(view)()
        except asyncio.CancelledError as error:
            caught.append(error)
            raise

    async def main() -> None:
        task = asyncio.create_task(request())
        await until(started)
        task.cancel()
        await end_of(task)
        assert task.cancelled()

    with caplog.at_level(logging.INFO):
        on_plain_loop(main)
    error = the_only_warning(caplog)
    assert isinstance(error, ValueError)
    assert caught[0].__cause__ is error


# --- C36: a choice for each call -----------------------------------------------------------


def test_c36_call_that_is_not_cancelled_is_the_same_with_abandon_on_cancel() -> None:
    """C36: result, exception and context variables arrive as always."""

    def set_and_return(error: Exception | None = None) -> str:
        assert not cancelled()
        variable.set("set")
        if error is not None:
            raise error
        return "result"

    async def main() -> list[str]:
        results = [await abandoning(set_and_return)(), variable.get()]
        variable.set("again")
        with pytest.raises(ValueError, match="expected"):
            await abandoning(set_and_return)(ValueError("expected"))
        return [*results, variable.get()]

    assert on_plain_loop(main) == ["result", "set", "set"]


def test_c36_abandoned_function_runs_on_in_its_worker_and_its_changes_are_lost(
    work: Work, pool: WorkerPool
) -> None:
    """C36: the task's context variables are its own from then on."""
    threads: list[threading.Thread] = []

    def function() -> str:
        variable.set("before")
        threads.append(threading.current_thread())
        work()
        variable.set("after")
        threads.append(threading.current_thread())
        return variable.get()

    async def main() -> list[str]:
        variable.set("task")
        before = traces()
        await timed_out(abandoning(function, pool)(), work.started)
        assert traces() == before
        seen = [variable.get(), await sync_to_async(variable.get)()]
        variable.set("task again")
        work.release.set()
        await ended(pool)
        return [*seen, variable.get(), await sync_to_async(variable.get)()]

    assert on_plain_loop(main) == ["task", "task", "task again", "task again"]
    assert [thread.name for thread in threads] == ["asyncbridge-tested-1"] * 2
    assert threads[0] is threads[1]


def test_c36_p3_token_of_an_earlier_call_stays_good_after_an_abandoned_one(
    work: Work, pool: WorkerPool
) -> None:
    """P3: `process_request` sets, a call in the view runs out of time, `process_response` resets."""
    tokens: list[Token[str]] = []

    def process_request() -> None:
        tokens.append(variable.set("request"))

    def process_response() -> None:
        variable.reset(tokens.pop())

    async def main() -> list[str]:
        await sync_to_async(process_request)()
        seen = [variable.get()]
        await timed_out(abandoning(work, pool)(), work.started)
        seen.append(await sync_to_async(variable.get)())
        await sync_to_async(process_response)()
        work.release.set()
        return [*seen, variable.get()]

    assert on_plain_loop(main) == ["request", "request", "unset"]


def test_c36_p3_token_of_an_earlier_call_stays_good_when_an_abandoned_one_has_ended(
    work: Work, pool: WorkerPool
) -> None:
    """P3: and what the abandoned function set meanwhile does not come back with it."""
    tokens: list[Token[str]] = []
    other = ContextVar("other", default="unset")

    def function() -> None:
        work()
        other.set("abandoned")

    async def main() -> list[str]:
        await sync_to_async(lambda: tokens.append(variable.set("request")))()
        await timed_out(abandoning(function, pool)(), work.started)
        work.release.set()
        await ended(pool)
        await sync_to_async(lambda: variable.reset(tokens.pop()))()
        return [variable.get(), other.get(), await sync_to_async(other.get)()]

    assert on_plain_loop(main) == ["unset"] * 3


@each_home
def test_c36_abandoned_function_can_ask_and_clean_up(home: Home, pool: WorkerPool) -> None:
    """C36: to be abandoned is to be cancelled; the clean-up may still use the loop."""
    started, release = threading.Event(), threading.Event()
    log: list[object] = []

    async def answer() -> str:
        await asyncio.sleep(0)
        return "answer"

    def function() -> None:
        started.set()
        assert release.wait(10)
        log.append(cancelled())
        # The first that comes without having asked is cancelled.
        with pytest.raises(asyncio.CancelledError):
            async_to_sync(answer)()
        with pytest.raises(asyncio.CancelledError):
            check_cancelled()
        log.append(async_to_sync(answer)())

    async def main() -> None:
        await cancelled_at_once(abandoning(function, pool)(), started)
        release.set()
        await ended(pool)

    home(main)
    assert log == [True, "answer"]


def test_c36_abandoned_function_that_waits_for_a_coroutine_has_that_cancelled(
    pool: WorkerPool,
) -> None:
    """C36: the coroutine is on the task's side of the bridge: it ends, and the function goes on with that."""
    log: list[str] = []

    async def main() -> None:
        began = asyncio.Event()

        async def wait_for_ever() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                log.append("coroutine ended")

        def function() -> None:
            with contextlib.suppress(asyncio.CancelledError):
                async_to_sync(wait_for_ever)()
            log.append("function ended")

        task = asyncio.create_task(abandoning(function, pool)())
        await began.wait()
        task.cancel()
        await loop_turns()
        assert task.cancelled()
        await ended(pool)

    on_plain_loop(main)
    assert log == ["coroutine ended", "function ended"]


def test_c36_abandoned_function_that_outlives_its_loop_can_clean_up_on_another(
    work: Work, pool: WorkerPool
) -> None:
    """C36: its `async_to_sync` then runs on a loop of its own thread."""
    log: list[object] = []

    async def answer() -> str:
        await asyncio.sleep(0)
        return "answer"

    def function() -> None:
        work()
        with contextlib.suppress(asyncio.CancelledError):
            check_cancelled()
        log.append(async_to_sync(answer)())

    on_plain_loop(lambda: cancelled_at_once(abandoning(function, pool)(), work.started))
    work.release.set()
    pool.shutdown()
    assert log == ["answer"]


def test_c36_abandon_on_cancel_with_an_executor_of_the_callers_own(work: Work) -> None:
    """C36: it is the call that is abandoned, whoever runs it."""

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            call = sync_to_async(
                work, thread_sensitive=False, executor=executor, abandon_on_cancel=True
            )
            await cancelled_at_once(call(), work.started)
            work.release.set()
        await loop_turns()

    on_plain_loop(main)
    assert work.effects == ["function ended"]


def test_c36_abandon_on_cancel_is_refused_where_it_cannot_be_had() -> None:
    """C36: a home thread can run nothing else before its function has ended."""
    wrap: Any = sync_to_async
    for make in (SyncToAsync[..., None], wrap, lambda *args, **kwargs: wrap(**kwargs)(*args)):
        with pytest.raises(TypeError, match="thread_sensitive=False"):
            make(noop, abandon_on_cancel=True)

    def generate() -> Iterator[int]:
        yield 1  # pragma: no cover

    with pytest.raises(TypeError, match="abandon_on_cancel"):
        wrap(generate, thread_sensitive=False, abandon_on_cancel=True)


@pytest.mark.parametrize("abandon", [False, True])
def test_c36_c35_call_that_is_cancelled_in_the_queue_never_runs(
    work: Work, pool: WorkerPool, abandon: bool
) -> None:
    """C35, C36: what has not begun is withdrawn in any case."""
    ran: list[str] = []

    async def main() -> None:
        first = asyncio.create_task(abandoning(work, pool)())
        await until(work.started)
        append = sync_to_async(
            ran.append, thread_sensitive=False, executor=pool, abandon_on_cancel=abandon
        )
        second = asyncio.create_task(append("second"))
        await loop_turns()
        assert pool.statistics().waiting == 1
        second.cancel()
        await loop_turns()
        assert second.cancelled()
        work.release.set()
        assert await first == "result"
        await append("third")

    on_plain_loop(main)
    assert ran == ["third"]


def test_c36_many_abandoned_calls_keep_their_workers_and_the_statistics_say_so(work: Work) -> None:
    """C36, C22: the price of abandoning can be seen: a full pool, and a queue behind it."""
    pool = WorkerPool("tested", maximum=3)
    ran: list[str] = []

    began = threading.Semaphore(0)

    def function() -> None:
        began.release()
        work()

    async def main() -> None:
        tasks = [asyncio.create_task(abandoning(function, pool)()) for _ in range(3)]
        for _ in tasks:
            assert await asyncio.to_thread(began.acquire, timeout=10)
        for task in tasks:
            task.cancel()
        await loop_turns()
        assert all(task.cancelled() for task in tasks)
        late = asyncio.create_task(abandoning(ran.append, pool)("late"))
        await loop_turns()
        full = pool.statistics()
        assert (full.workers, full.idle, full.waiting) == (3, 0, 1)
        assert ran == []
        work.release.set()
        await late
        await ended(pool)

    on_plain_loop(main)
    assert ran == ["late"]
    assert work.effects == ["function ended"] * 3
    assert pool.statistics().lent == 4


def test_c36_abandoned_calls_leave_the_default_pool_as_it_was(work: Work) -> None:
    """C36: when they have ended, their workers are free again."""
    pool = _state.default_workers

    async def main() -> None:
        await cancelled_at_once(abandoning(work)(), work.started)
        # Another call gets past it.
        await sync_to_async(noop, thread_sensitive=False)()
        busy = pool.statistics()
        asyncio.get_running_loop().call_soon(work.release.set)
        while pool.statistics().idle <= busy.idle:
            await asyncio.sleep(0.001)

    on_plain_loop(main)
    assert work.effects == ["function ended"]


def test_c36_executor_that_is_shut_down_with_cancel_futures_cancels_what_is_queued(
    work: Work, pool: WorkerPool
) -> None:
    """C36: asgiref's `cancel_futures_on_exit`, by the executor's own means."""
    ran: list[str] = []

    async def main() -> None:
        running = asyncio.create_task(sync_to_async(work, thread_sensitive=False, executor=pool)())
        await until(work.started)
        append = sync_to_async(ran.append, thread_sensitive=False, executor=pool)
        queued = asyncio.create_task(append("queued"))
        await loop_turns()
        pool.shutdown(wait=False, cancel_futures=True)
        assert isinstance(await end_of(queued), asyncio.CancelledError)
        work.release.set()
        assert await running == "result"
        with pytest.raises(RuntimeError, match="after shutdown"):
            await append("late")

    on_plain_loop(main)
    assert ran == []


def test_c36_process_with_an_abandoned_function_ends_when_that_has_ended() -> None:
    """C36, P8: it is not killed in the middle of its work."""
    child = run_child(
        """
        import asyncio, threading
        from django_asyncbridge.bridge.sync import sync_to_async

        started, release = threading.Event(), threading.Event()

        def function():
            started.set()
            assert release.wait(10)
            print("function ended")

        async def main():
            call = sync_to_async(function, thread_sensitive=False, abandon_on_cancel=True)
            task = asyncio.create_task(call())
            await asyncio.to_thread(started.wait, 10)
            task.cancel()
            await asyncio.wait([task])
            print("task ended")

        asyncio.run(main())
        threading.Timer(0.1, release.set).start()
        print("main ended")
        """
    )
    assert child.stdout.split("\n")[:3] == ["task ended", "main ended", "function ended"]
    assert "Traceback" not in child.stderr
