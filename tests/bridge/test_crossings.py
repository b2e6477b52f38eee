"""`Crossing`: what observers are told, of which calls, in which thread; and that they cannot break any."""

import asyncio
import contextlib
import gc
import logging
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from typing import Any, NoReturn, cast

import pytest

from django_asyncbridge.bridge import _crossings, _state
from django_asyncbridge.bridge._crossings import Watch
from django_asyncbridge.bridge.sync import (
    Crossing,
    SyncToAsync,
    ThreadSensitiveContext,
    WorkerPool,
    add_observer,
    async_to_sync,
    markcoroutinefunction,
    remove_observer,
    sync_to_async,
)
from tests.bridge import LIMIT_SECONDS, ManualExecutor, hand_driven_loop, wait, without_gc
from tests.support import run_child, run_in_thread

LOGGER = "django_asyncbridge.bridge.sync"
Fails = type[BaseException] | None


class Seen:
    """An observer that keeps what it is told, and in which threads."""

    def __init__(self) -> None:
        self.all: list[Crossing] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, crossing: Crossing) -> None:
        self.threads.append(threading.current_thread())
        self.all.append(crossing)

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[Crossing]:
        return iter(self.all)

    def __getitem__(self, index: int) -> Crossing:
        return self.all[index]

    def only(self) -> Crossing:
        (crossing,) = self.all
        return crossing


@pytest.fixture(autouse=True)
def no_observer_is_left() -> Iterator[None]:
    yield
    left, _crossings.observers = _crossings.observers, ()
    assert left == ()


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    add_observer(seen)
    yield seen
    remove_observer(seen)


def on_plain_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return run_in_thread(lambda: asyncio.run(main()))


def sync_function(error: Fails = None) -> str:
    if error is not None:
        raise error
    return threading.current_thread().name


async def async_function(error: Fails = None) -> str:
    await asyncio.sleep(0)
    if error is not None:
        raise error
    return threading.current_thread().name


def described(crossing: Crossing) -> str:
    name: str = crossing.function.__qualname__
    return name


def ordered(crossing: Crossing) -> bool:
    assert crossing.started_at is not None
    return crossing.queued_at <= crossing.started_at <= crossing.ended_at


async def begun(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, LIMIT_SECONDS)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Blocking:
    """A sync function that ends when the test lets it."""

    def __init__(self) -> None:
        self.started, self.release = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.started.set()
        wait(self.release)


@pytest.fixture
def blocking() -> Iterator[Blocking]:
    blocking = Blocking()
    yield blocking
    blocking.release.set()


# --- sync_to_async -------------------------------------------------------------------------


def test_crossing_of_sync_to_async_tells_function_kind_times_thread_and_result(seen: Seen) -> None:
    before = time.monotonic()

    async def main() -> tuple[str, threading.Thread]:
        return await sync_to_async(sync_function)(), threading.current_thread()

    name, loop_thread = on_plain_loop(main)
    crossing = seen.only()
    assert crossing.function is sync_function
    assert (crossing.kind, crossing.result) == ("sync_to_async", "returned")
    assert crossing.thread == name != loop_thread.name
    assert ordered(crossing)
    assert before <= crossing.queued_at
    assert crossing.ended_at <= time.monotonic()
    assert seen.threads == [loop_thread]


@pytest.mark.parametrize("home", ["shared", "context", "pool", "caller", "executor"])
def test_crossing_names_the_thread_that_ran_the_function(seen: Seen, home: str) -> None:
    async def main() -> str:
        if home == "context":
            async with ThreadSensitiveContext():
                return await sync_to_async(sync_function)()
        if home == "executor":
            with ThreadPoolExecutor(1, "own") as executor:
                call = sync_to_async(sync_function, thread_sensitive=False, executor=executor)
                return await call()
        return await sync_to_async(sync_function, thread_sensitive=home != "pool")()

    name = run_in_thread(async_to_sync(main)) if home == "caller" else on_plain_loop(main)
    assert (seen[0].kind, seen[0].thread) == ("sync_to_async", name)
    prefix = {
        "shared": "asyncbridge-shared-",
        "context": "asyncbridge-request-",
        "pool": "asyncbridge-default-",
        "caller": "Thread-",
        "executor": "own",
    }[home]
    assert name.startswith(prefix)


@pytest.mark.parametrize("error", [ValueError, SystemExit, StopIteration])
def test_crossing_of_a_function_that_raises_says_so(seen: Seen, error: type[BaseException]) -> None:
    async def main() -> None:
        with pytest.raises((error, RuntimeError)):
            await sync_to_async(sync_function)(error)

    with hand_driven_loop() as loop, contextlib.suppress(SystemExit):
        # asyncio lets SystemExit pass only if it leaves the task.
        loop.run_until_complete(main())
    assert seen.only().result == "raised"
    assert ordered(seen.only())


def test_crossing_of_a_cancelled_call_ends_when_its_function_does(
    seen: Seen, blocking: Blocking
) -> None:
    async def main() -> float:
        task = asyncio.create_task(sync_to_async(blocking)())
        await begun(blocking.started)
        task.cancel()
        await turns()
        assert not seen.all
        released_at = time.monotonic()
        blocking.release.set()
        await asyncio.wait([task])
        assert task.cancelled()
        return released_at

    released_at = on_plain_loop(main)
    assert seen.only().result == "cancelled"
    assert ordered(seen.only())
    assert seen.only().ended_at >= released_at


def test_crossing_of_a_cancelled_function_that_raised_is_cancelled_as_its_caller_saw_it(
    seen: Seen,
) -> None:
    started, release = threading.Event(), threading.Event()

    def fail() -> NoReturn:
        started.set()
        wait(release)
        raise ValueError("expected")

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(fail)())
        await begun(started)
        task.cancel()
        release.set()
        await asyncio.wait([task])
        assert task.cancelled()

    on_plain_loop(main)
    assert seen.only().result == "cancelled"


def test_crossing_of_a_withdrawn_call_never_started(seen: Seen, blocking: Blocking) -> None:
    async def main() -> None:
        first = asyncio.create_task(sync_to_async(blocking)())
        await begun(blocking.started)
        second = asyncio.create_task(sync_to_async(sync_function)())
        await turns()
        second.cancel()
        await asyncio.wait([second])
        withdrawn = seen.only()
        assert withdrawn.function is sync_function
        assert (withdrawn.started_at, withdrawn.thread) == (None, None)
        assert withdrawn.result == "cancelled"
        assert withdrawn.queued_at <= withdrawn.ended_at
        blocking.release.set()
        await first

    on_plain_loop(main)
    assert [crossing.result for crossing in seen] == ["cancelled", "returned"]


def test_crossing_of_an_abandoned_call_ends_when_its_task_is_let_go(
    seen: Seen, blocking: Blocking
) -> None:
    pool = WorkerPool("observed")

    async def main() -> None:
        call = sync_to_async(
            blocking, thread_sensitive=False, executor=pool, abandon_on_cancel=True
        )
        task = asyncio.create_task(call())
        await begun(blocking.started)
        task.cancel()
        await asyncio.wait([task])
        assert seen.only().result == "cancelled"
        assert ordered(seen.only())
        assert seen.only().thread == "asyncbridge-observed-1"
        blocking.release.set()
        # Behind it in the same worker, or in another: by then the loop has heard of the first.
        await asyncio.to_thread(pool.shutdown)
        await turns()

    on_plain_loop(main)
    # Told once, not again when the function ended.
    assert len(seen) == 1


def test_crossing_abandoned_in_the_moment_it_begins_has_begun_or_not(
    seen: Seen, blocking: Blocking, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker has just taken the call; what it notes and what is told must fit together."""
    pool = WorkerPool("observed")
    beginning, go_on = threading.Event(), threading.Event()

    class Clock:
        def monotonic(self) -> float:
            if threading.current_thread().name.startswith("asyncbridge-observed"):
                beginning.set()
                wait(go_on)
            return time.monotonic()

    monkeypatch.setattr(_crossings, "time", Clock())

    async def main() -> None:
        call = sync_to_async(
            blocking, thread_sensitive=False, executor=pool, abandon_on_cancel=True
        )
        task = asyncio.create_task(call())
        await begun(beginning)
        task.cancel()
        await asyncio.wait([task])
        go_on.set()
        blocking.release.set()
        await asyncio.to_thread(pool.shutdown)

    on_plain_loop(main)
    crossing = seen.only()
    assert crossing.result == "cancelled"
    assert (crossing.started_at is None) == (crossing.thread is None)


def test_crossing_of_a_call_that_its_executor_failed_never_started(seen: Seen) -> None:
    executor = ManualExecutor()

    async def main() -> None:
        call = sync_to_async(sync_function, thread_sensitive=False, executor=executor)
        task = asyncio.create_task(call())
        await turns()
        executor.drop_next(ValueError("expected"))
        with pytest.raises(ValueError, match="expected"):
            await task

    on_plain_loop(main)
    assert seen.only().result == "raised"
    assert (seen.only().started_at, seen.only().thread) == (None, None)


@pytest.mark.parametrize("how", ["raised", "dropped"])
def test_crossing_whose_caller_sees_a_cancellation_is_cancelled(seen: Seen, how: str) -> None:
    """Nobody cancelled the task; but that is what it sees."""
    executor = ManualExecutor()

    async def main() -> None:
        call = sync_to_async(sync_function, thread_sensitive=False, executor=executor)
        task = asyncio.create_task(call(asyncio.CancelledError))
        await turns()
        if how == "raised":
            await asyncio.to_thread(executor.run_next)
        else:
            executor.queue.pop()[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    on_plain_loop(main)
    assert seen.only().result == "cancelled"


def test_crossing_of_a_call_closed_by_hand_is_cancelled(seen: Seen) -> None:
    executor = ManualExecutor()
    call = sync_to_async(sync_function, thread_sensitive=False, executor=executor)
    with hand_driven_loop() as loop:

        async def main() -> None:
            coroutine = call()
            coroutine.send(None)
            coroutine.close()

        loop.run_until_complete(main())
    assert seen.only().result == "cancelled"
    assert seen.only().started_at is None


def test_crossings_of_queued_calls_show_how_long_each_waited(
    seen: Seen, blocking: Blocking
) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sync_to_async(blocking)())
            group.create_task(sync_to_async(sync_function)())
            await begun(blocking.started)
            blocking.release.set()

    on_plain_loop(main)
    first, second = sorted(seen, key=lambda crossing: crossing.queued_at)
    assert second.started_at is not None
    # The second was made while the first ran, and began after its end.
    assert second.queued_at < first.ended_at <= second.started_at


def test_crossing_of_a_subclass_with_a_thread_handler_of_its_own_is_the_function_itself(
    seen: Seen,
) -> None:
    class Handling(SyncToAsync[..., Any]):
        def thread_handler(
            self,
            loop: asyncio.AbstractEventLoop,
            exc_info: Any,
            task_context: Any,
            func: Callable[..., Any],
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            at.append(time.monotonic())
            try:
                return super().thread_handler(loop, exc_info, task_context, func, *args, **kwargs)
            finally:
                at.append(time.monotonic())

    at: list[float] = []

    async def main() -> str:
        result: str = await Handling(sync_function)()
        return result

    name = on_plain_loop(main)
    crossing = seen.only()
    assert (crossing.function, crossing.thread) == (sync_function, name)
    assert crossing.started_at is not None
    # What the handler does before and after is not the function's time.
    before, after = at
    assert before <= crossing.started_at <= crossing.ended_at <= after


# --- async_to_sync -------------------------------------------------------------------------


def test_crossing_of_async_to_sync_at_top_level_runs_and_is_told_in_the_calling_thread(
    seen: Seen,
) -> None:
    def caller() -> threading.Thread:
        assert async_to_sync(async_function)() == threading.current_thread().name
        return threading.current_thread()

    thread = run_in_thread(caller)
    crossing = seen.only()
    assert crossing.function is async_function
    assert (crossing.kind, crossing.result) == ("async_to_sync", "returned")
    assert crossing.thread == thread.name
    assert ordered(crossing)
    assert seen.threads == [thread]


def test_crossings_below_a_loop_are_told_from_the_inside_out_each_in_its_callers_thread(
    seen: Seen,
) -> None:
    threads: list[threading.Thread] = []

    def middleware() -> str:
        threads.append(threading.current_thread())
        return async_to_sync(async_function)()

    async def main() -> None:
        threads.append(threading.current_thread())
        assert await sync_to_async(middleware)() == threads[0].name

    on_plain_loop(main)
    inner, outer = seen
    loop_thread, worker = threads
    assert (inner.kind, inner.thread) == ("async_to_sync", loop_thread.name)
    assert (outer.kind, outer.thread) == ("sync_to_async", worker.name)
    assert seen.threads == [worker, loop_thread]
    assert outer.started_at is not None
    assert outer.started_at <= inner.queued_at <= inner.ended_at <= outer.ended_at


def test_crossings_with_work_in_the_waiting_thread_tell_of_both(seen: Seen) -> None:
    def caller() -> str:
        assert async_to_sync(sync_to_async(sync_function))() == threading.current_thread().name
        return threading.current_thread().name

    name = run_in_thread(caller)
    inner, outer = seen
    assert (inner.kind, inner.thread) == ("sync_to_async", name)
    # The coroutine began here; its loop moved when the work needed this thread.
    assert (outer.kind, outer.thread) == ("async_to_sync", name)


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_crossing_of_a_coroutine_that_raises_says_so(seen: Seen, error: type[Exception]) -> None:
    def caller() -> None:
        with pytest.raises(error):
            async_to_sync(async_function)(error)

    run_in_thread(caller)
    assert seen.only().result == "raised"
    assert ordered(seen.only())


def test_crossing_of_a_coroutine_that_is_cancelled_says_so(seen: Seen) -> None:
    def caller() -> None:
        with pytest.raises(asyncio.CancelledError):
            async_to_sync(async_function)(asyncio.CancelledError)

    run_in_thread(caller)
    assert seen.only().result == "cancelled"
    assert ordered(seen.only())


def test_crossing_of_a_coroutine_that_ran_out_of_time_has_raised(seen: Seen) -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    def caller() -> None:
        with pytest.raises(TimeoutError, match="did not end within"):
            async_to_sync(forever, timeout=0.01)()

    run_in_thread(caller)
    assert seen.only().result == "raised"


@pytest.mark.parametrize("limit", [None, 5.0])
def test_crossings_of_a_cancelled_chain_are_all_cancelled(seen: Seen, limit: float | None) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def view() -> None:
            started.set()
            await asyncio.sleep(LIMIT_SECONDS)

        task = asyncio.create_task(sync_to_async(async_to_sync(view, timeout=limit))())
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    on_plain_loop(main)
    assert [(one.kind, one.result) for one in seen] == [
        ("async_to_sync", "cancelled"),
        ("sync_to_async", "cancelled"),
    ]
    assert all(map(ordered, seen))


def test_crossing_that_was_cancelled_before_its_coroutine_began_never_started(seen: Seen) -> None:
    """P5: the function's cancellation found nobody to go to before; the coroutine never runs."""
    started, release = threading.Event(), threading.Event()

    async def must_not_run() -> NoReturn:
        raise AssertionError("it ran")

    def function() -> None:
        started.set()
        wait(release)
        async_to_sync(must_not_run)()

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(function)())
        await begun(started)
        task.cancel()
        release.set()
        await asyncio.wait([task])
        assert task.cancelled()

    on_plain_loop(main)
    inner = seen[0]
    assert (inner.kind, inner.result) == ("async_to_sync", "cancelled")
    assert (inner.started_at, inner.thread) == (None, None)


def test_crossing_with_wrong_arguments_has_raised_and_never_started(seen: Seen) -> None:
    def caller() -> None:
        with pytest.raises(TypeError):
            cast("Any", async_to_sync(async_function))(1, 2, 3)

    run_in_thread(caller)
    assert seen.only().result == "raised"
    assert (seen.only().started_at, seen.only().thread) == (None, None)


def no_loop() -> NoReturn:
    raise OSError("too many open files")


def test_crossing_without_a_loop_has_raised_never_started_and_leaves_no_coroutine(
    seen: Seen,
) -> None:
    def caller() -> None:
        with pytest.raises(OSError, match="too many"):
            async_to_sync(async_function, loop_factory=no_loop)()
        # Python warns of a coroutine that was never awaited when it goes; here a warning is an error.
        gc.collect()

    run_in_thread(caller)
    assert (seen.only().started_at, seen.only().thread) == (None, None)
    assert seen.only().result == "raised"


class Later:
    """An awaitable that is no coroutine, so there is nothing to close."""

    def __await__(self) -> Generator[Any, Any, str]:
        yield from asyncio.sleep(0).__await__()
        return "later"


@markcoroutinefunction
def later() -> Later:
    return Later()


def test_crossing_of_an_awaitable_that_is_no_coroutine_is_told_as_any_other(seen: Seen) -> None:
    def caller() -> str:
        with pytest.raises(OSError, match="too many"):
            async_to_sync(later, loop_factory=no_loop)()
        result: str = async_to_sync(later)()
        return result

    assert run_in_thread(caller) == "later"
    failed, returned = seen
    assert (failed.result, failed.started_at) == ("raised", None)
    assert returned.result == "returned"
    assert ordered(returned)


def test_crossing_of_an_async_to_sync_call_that_was_interrupted_ends_after_its_coroutine() -> None:
    """Ctrl-C: the coroutine is cancelled; the caller sees the signal handler's exception."""
    run_child(
        f"""
        import asyncio, os, signal
        from django_asyncbridge.bridge.sync import add_observer, async_to_sync

        seen, cleaned = [], []
        add_observer(seen.append)

        async def work():
            os.kill(os.getpid(), {int(signal.SIGINT)})
            try:
                await asyncio.sleep(10)
            finally:
                await asyncio.sleep(0)
                cleaned.append("work")

        try:
            async_to_sync(work)()
        except KeyboardInterrupt:
            pass
        else:
            raise SystemExit("not interrupted")
        (crossing,) = seen
        assert cleaned == ["work"]
        assert crossing.kind == "async_to_sync" and crossing.thread == "MainThread"
        assert crossing.queued_at <= crossing.started_at <= crossing.ended_at
        assert crossing.result == "cancelled", crossing
        """
    )


# --- Generators ----------------------------------------------------------------------------


def test_generator_function_in_a_thread_works_the_same_under_observation(seen: Seen) -> None:
    ended: list[str] = []

    def generate() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            ended.append(threading.current_thread().name)

    async def main() -> list[int]:
        return [item async for item in sync_to_async(generate)()]

    assert on_plain_loop(main) == [0, 1, 2]
    assert len(ended) == 1
    # The name of the generator function stands for what it made.
    assert {described(one) for one in seen} == {generate.__qualname__}
    assert {(one.kind, one.result) for one in seen} == {("sync_to_async", "returned")}
    assert {one.thread for one in seen} == set(ended)
    assert all(map(ordered, seen))


def test_async_generator_function_works_the_same_under_observation(seen: Seen) -> None:
    async def generate() -> AsyncIterator[int]:
        for item in range(3):
            await asyncio.sleep(0)
            yield item

    def caller() -> list[int]:
        return list(async_to_sync(generate)())

    assert run_in_thread(caller) == [0, 1, 2]
    assert {described(one) for one in seen} == {generate.__qualname__}
    assert {(one.kind, one.result) for one in seen} == {("async_to_sync", "returned")}
    assert all(map(ordered, seen))


# --- Observers -----------------------------------------------------------------------------


async def cross() -> str:
    return await sync_to_async(sync_function)()


def test_watch_without_an_observer_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free when nobody listens."""
    made: list[object] = []
    monkeypatch.setattr(Watch, "__init__", lambda *args: made.append(args))

    def caller() -> str:
        return async_to_sync(cross)()

    assert _crossings.observers == ()
    run_in_thread(caller)
    on_plain_loop(cross)
    assert made == []


def test_observer_that_was_removed_is_not_called_any_more(seen: Seen) -> None:
    on_plain_loop(cross)
    remove_observer(seen)
    on_plain_loop(cross)
    assert len(seen) == 1
    # Nobody is removed, and nobody minds.
    remove_observer(seen)


def test_observers_are_called_in_the_order_they_came(seen: Seen) -> None:
    order: list[str] = []

    def first(crossing: Crossing) -> None:
        order.append("first")

    def second(crossing: Crossing) -> None:
        order.append("second")

    add_observer(first)
    add_observer(second)
    on_plain_loop(cross)
    remove_observer(first)
    on_plain_loop(cross)
    remove_observer(second)
    assert order == ["first", "second", "second"]
    assert len(seen) == 2


def test_observer_added_during_a_call_hears_of_the_next(seen: Seen) -> None:
    late = Seen()

    def function() -> None:
        add_observer(late)

    async def main() -> None:
        await sync_to_async(function)()
        await sync_to_async(sync_function)()

    on_plain_loop(main)
    remove_observer(late)
    # It is told of the first as well, whose clock was running for the other observer's sake.
    assert late[-1].function is sync_function
    assert len(seen) == 2


def test_observer_added_during_the_only_call_hears_nothing_of_it() -> None:
    late = Seen()
    on_plain_loop(lambda: sync_to_async(add_observer)(late))
    assert not late.all
    on_plain_loop(cross)
    remove_observer(late)
    assert len(late) == 1


def test_observer_removed_during_the_only_call_hears_nothing_of_it(seen: Seen) -> None:
    on_plain_loop(lambda: sync_to_async(remove_observer)(seen))
    assert not seen.all


def test_observers_may_add_and_remove_observers_while_they_are_called(seen: Seen) -> None:
    added = Seen()

    def changing(crossing: Crossing) -> None:
        remove_observer(changing)
        remove_observer(seen)
        add_observer(added)

    add_observer(changing)
    on_plain_loop(cross)
    told = len(seen), len(added)
    on_plain_loop(cross)
    remove_observer(added)
    # This crossing's observers are those who were there when it was told.
    assert told == (1, 0)
    assert (len(seen), len(added)) == (1, 1)


@pytest.mark.parametrize("kind", ["sync_to_async", "async_to_sync"])
def test_observer_that_raises_is_dropped_and_logged_once_and_the_others_are_called(
    seen: Seen, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    calls: list[Crossing] = []
    last = Seen()

    def broken(crossing: Crossing) -> None:
        calls.append(crossing)
        raise ValueError("expected")

    def call() -> str:
        if kind == "sync_to_async":
            result: str = on_plain_loop(cross)
            return result
        return run_in_thread(async_to_sync(async_function))

    add_observer(broken)
    add_observer(last)
    assert call()
    assert call()
    remove_observer(last)
    assert len(calls) == 1
    assert len(seen) == len(last) == 2
    (record,) = caplog.records
    assert (record.name, record.levelno) == (LOGGER, logging.ERROR)
    assert "broken" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "expected"


@pytest.mark.parametrize("kind", ["sync_to_async", "async_to_sync"])
def test_observer_that_raises_does_not_replace_the_error_of_the_call(
    caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    def broken(crossing: Crossing) -> None:
        raise ValueError("of the observer")

    async def main() -> None:
        await sync_to_async(sync_function)(KeyError)

    add_observer(broken)
    calls: dict[str, Callable[[], Any]] = {
        "sync_to_async": lambda: on_plain_loop(main),
        "async_to_sync": lambda: run_in_thread(lambda: async_to_sync(async_function)(KeyError)),
    }
    with pytest.raises(KeyError) as caught:
        calls[kind]()
    assert caught.value.__context__ is None
    assert len(caplog.records) == 1


def test_observer_that_raises_a_cancellation_breaks_no_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An observer can never break a call: the task was not cancelled, so it must not end so."""

    def broken(crossing: Crossing) -> None:
        raise asyncio.CancelledError

    add_observer(broken)
    try:
        assert on_plain_loop(cross).startswith("asyncbridge-")
    finally:
        remove_observer(broken)
    assert len(caplog.records) == 1


def test_observer_that_makes_calls_of_its_own_is_not_told_of_these(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Otherwise it would be called for ever: each call that it makes calls it again."""
    calls: list[Crossing] = []

    def exporting(crossing: Crossing) -> None:
        calls.append(crossing)
        assert len(calls) == 1
        async_to_sync(async_function)()

    add_observer(exporting)
    try:
        run_in_thread(async_to_sync(async_function))
    finally:
        remove_observer(exporting)
    assert len(calls) == 1
    assert caplog.records == []


def test_observer_that_was_added_twice_and_raises_is_called_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls: list[Crossing] = []

    def broken(crossing: Crossing) -> None:
        calls.append(crossing)
        raise ValueError("expected")

    add_observer(broken)
    add_observer(broken)
    on_plain_loop(cross)
    assert _crossings.observers == ()
    assert len(calls) == len(caplog.records) == 1


def test_observers_added_and_removed_by_many_threads_lose_nobody() -> None:
    together = threading.Barrier(8, timeout=LIMIT_SECONDS)
    kept = [Seen() for _ in range(8)]

    def work(one: Seen) -> None:
        together.wait()
        for _ in range(50):
            passing = Seen()
            add_observer(passing)
            remove_observer(passing)
        add_observer(one)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, kept))
    try:
        assert len(_crossings.observers) == 8
        on_plain_loop(cross)
        assert [len(one) for one in kept] == [1] * 8
    finally:
        for one in kept:
            remove_observer(one)


def test_crossings_of_many_threads_are_all_told_in_their_own(seen: Seen) -> None:
    together = threading.Barrier(4, timeout=LIMIT_SECONDS)

    def work() -> str:
        together.wait()
        for _ in range(5):
            async_to_sync(cross)()
        return threading.current_thread().name

    with ThreadPoolExecutor(4) as pool:
        names = {call.result(LIMIT_SECONDS) for call in [pool.submit(work) for _ in range(4)]}
    assert len(seen) == 4 * 5 * 2
    outer = [one for one in seen if one.kind == "async_to_sync"]
    assert len(outer) == 20
    assert {one.thread for one in seen} == names
    assert all(map(ordered, seen))


def test_crossing_cannot_be_changed(seen: Seen) -> None:
    on_plain_loop(cross)
    with pytest.raises(FrozenInstanceError):
        cast("Any", seen.only()).result = "raised"


def test_watch_whose_function_never_began_ends_when_it_is_told(seen: Seen) -> None:
    watch = Watch(sync_function, "sync_to_async")
    watch.tell("cancelled")
    crossing = seen.only()
    assert crossing.started_at is None
    assert crossing.queued_at <= crossing.ended_at


def test_observers_in_a_forked_child_are_those_of_the_parent() -> None:
    run_child(
        """
        import asyncio, os, warnings
        from django_asyncbridge.bridge.sync import add_observer, async_to_sync, sync_to_async

        warnings.simplefilter("ignore", DeprecationWarning)
        seen = []
        add_observer(seen.append)

        async def cross():
            return await sync_to_async(os.getpid)()

        async_to_sync(cross)()
        child = os.fork()
        if not child:
            code = 1
            try:
                asyncio.run(cross())
                assert len(seen) == 3, seen
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert len(seen) == 2
        """
    )


class TrackedError(Exception):
    """An error one can hold a weak reference to."""


@pytest.mark.parametrize("kind", ["sync_to_async", "async_to_sync"])
def test_observed_call_leaves_no_reference_cycle_with_its_error(seen: Seen, kind: str) -> None:
    """P7: the clock's frames hold nothing that leads back to the error."""
    errors: list[weakref.ref[BaseException]] = []
    pause = threading.Event()

    def fail() -> NoReturn:
        error = TrackedError()
        errors.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def fail_async() -> NoReturn:
        fail()

    def caller() -> None:
        with contextlib.suppress(TrackedError):
            async_to_sync(fail_async if kind == "async_to_sync" else sync_to_async(fail))()

    with without_gc():
        run_in_thread(caller)
        (error,) = errors
        # The worker that ran the loop may not have left its last step yet; a cycle would stay for ever.
        assert any(error() is None or pause.wait(0.001) for _ in range(5000))
    assert {one.result for one in seen} == {"raised"}


def test_statistics_of_the_default_pool_count_an_observed_call_once(seen: Seen) -> None:
    before = _state.default_workers.statistics()
    on_plain_loop(sync_to_async(sync_function, thread_sensitive=False))
    assert _state.default_workers.statistics().lent == before.lent + 1
    assert len(seen) == 1
