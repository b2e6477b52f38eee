"""Calls in a process pool: what is sent, what comes back, and that nothing breaks the pool but the end of a process."""

import asyncio
import contextlib
import contextvars
import functools
import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from pickle import PicklingError, UnpicklingError
from typing import Any

import pytest

from django_asyncbridge.bridge import _call, _processes, _state
from django_asyncbridge.bridge.sync import (
    Crossing,
    add_observer,
    remove_observer,
    sync_to_async,
)
from tests.bridge import hand_driven_loop, in_processes, turn, without_gc
from tests.support import run_child

# What decorators make of functions is not what type checkers are shown there.
decorated: Any = in_processes
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, SPAWN, in_processes.note_calls) as executor:
        yield executor


@pytest.fixture
def named(pool: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state, "resolve_executor", {"processes": pool}.__getitem__)


def there(function: Callable[..., Any], pool: Executor, **options: Any) -> Callable[..., Any]:
    return sync_to_async(function, thread_sensitive=False, executor=pool, **options)


class Meeting:
    """A call of `meet`, which runs until it is answered."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self.listener = Listener(self.address)
        self.connection: Connection[Any, Any]

    async def begin(self) -> int:
        """Wait until the call runs, and return its process."""
        self.connection = await asyncio.to_thread(self.listener.accept)
        process: int = await asyncio.to_thread(self.connection.recv)
        return process

    def answer(self, answer: Any) -> None:
        """Let the call end."""
        self.connection.send(answer)
        self.connection.close()


@contextlib.contextmanager
def new_meeting(tmp_path: Path) -> Iterator[Meeting]:
    meeting = Meeting(tmp_path / "meeting")
    with meeting.listener:
        yield meeting


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    with new_meeting(tmp_path) as one:
        yield one


async def settled(task: "asyncio.Task[Any]") -> bool:
    """Tell whether a task ends by itself within a few turns."""
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


# --- There and back ------------------------------------------------------------------


def test_call_in_a_process_pool_runs_there_and_brings_its_value_back(
    pool: ProcessPoolExecutor,
) -> None:
    async def main() -> None:
        process = await there(in_processes.note, pool)("value")
        assert process != os.getpid()
        assert await there(in_processes.note, pool)(name="again") == process

    asyncio.run(main())


@pytest.mark.usefixtures("named")
def test_call_of_a_decorated_function_finds_it_behind_its_wrapper() -> None:
    async def main() -> None:
        process, first = await decorated.decorated(1)
        assert process != os.getpid()
        assert first == 1
        assert await decorated.decorated_twice(2) == ("wrapped", 2)

    asyncio.run(main())


@pytest.mark.usefixtures("named")
def test_call_of_a_decorated_function_that_was_decorated_again_finds_it() -> None:
    async def main() -> None:
        kind, awaitable = decorated.decorated_around(3)
        assert kind == "wrapped"
        assert await awaitable == ("wrapped", 3)

    asyncio.run(main())


@pytest.mark.usefixtures("named")
def test_call_of_a_decorated_method_finds_it_behind_its_wrapper() -> None:
    async def main() -> None:
        instance = decorated.Methods(7)
        assert await instance.plain(1) == (7, 1)
        assert await decorated.Methods.plain(instance, 1) == (7, 1)
        assert await instance.of_class(2) == ("Methods", 2)
        assert await instance.static(3) == 3
        assert await instance.wrapped_static(4) == 4

    asyncio.run(main())


def test_call_of_methods_objects_partials_and_builtins_works(pool: ProcessPoolExecutor) -> None:
    async def main() -> None:
        instance = decorated.Methods(7)
        assert await there(instance.bare, pool)(1) == (7, 1)
        assert await there(instance, pool)(1) == (7, 1)
        assert await there(functools.partial(in_processes.divide, 6), pool)(2) == 3
        inner = functools.partial(decorated.decorated.func, 5)
        assert (await there(inner, pool)())[1] == 5
        assert await there(abs, pool)(-1) == 1

    asyncio.run(main())


def test_call_takes_no_context_variables_along(pool: ProcessPoolExecutor) -> None:
    async def main() -> None:
        in_processes.variable.set("set")
        assert await there(in_processes.variable_there, pool)() == "unset"
        assert in_processes.variable.get() == "set"

    asyncio.run(main())


def test_call_with_a_context_is_refused(pool: ProcessPoolExecutor) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match=r"in_processes\.note cannot be run in a process pool"):
            await there(in_processes.note, pool, context=contextvars.Context())("x")

    asyncio.run(main())


def test_call_that_raises_brings_the_exception_with_its_traceback(
    pool: ProcessPoolExecutor,
) -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
            await there(in_processes.divide, pool)(1, 0)
        (text,) = caught.value.__notes__
        assert text.startswith("In process-")
        assert "return first / second" in text

    asyncio.run(main())


def test_call_that_raises_an_exception_without_notes_brings_it(pool: ProcessPoolExecutor) -> None:
    async def main() -> None:
        with pytest.raises(in_processes.FrozenError, match="ice"):
            await there(in_processes.raise_frozen, pool)()

    asyncio.run(main())


def test_call_that_raises_stop_iteration_raises_runtime_error(pool: ProcessPoolExecutor) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
            await there(in_processes.stop, pool)()
        assert isinstance(caught.value.__cause__, StopIteration)

    asyncio.run(main())


# --- What cannot be sent ---------------------------------------------------------------


def local_function() -> Callable[[], None]:
    return lambda: None


@pytest.mark.parametrize(
    ("function", "args", "error", "message"),
    [
        (in_processes.note, [threading.Lock()], PicklingError, r"in_processes\.note cannot be run"),
        (local_function(), [], PicklingError, r"<lambda> cannot be run in another process"),
        (in_processes.lost, [], PicklingError, r"ring cannot be run in another process"),
        (in_processes.return_lock, [], PicklingError, r"what .*return_lock returned cannot be"),
        (
            in_processes.raise_picky,
            [],
            RuntimeError,
            r"raise_picky raised .*PickyError: no, an exception",
        ),
        (
            in_processes.note,
            [in_processes.Stubborn()],
            UnpicklingError,
            r"note or its arguments could not be unpickled in process .*not here",
        ),
        (
            in_processes.return_stubborn,
            [],
            UnpicklingError,
            r"what .*return_stubborn returned or raised .* unpickled here: ValueError: not here",
        ),
    ],
    ids=["argument", "function", "ring", "value", "exception", "there", "here"],
)
def test_call_that_cannot_be_sent_there_or_back_fails_alone_and_names_the_function(
    pool: ProcessPoolExecutor,
    function: Callable[..., Any],
    args: list[Any],
    error: type[Exception],
    message: str,
) -> None:
    async def main() -> None:
        with pytest.raises(error, match=message):
            await there(function, pool)(*args)
        assert await there(abs, pool)(-1) == 1

    asyncio.run(main())


def test_generator_function_in_a_process_pool_is_told_that_it_cannot(
    pool: ProcessPoolExecutor,
) -> None:
    async def main() -> None:
        async with there(in_processes.numbers, pool)() as items:
            with pytest.raises(
                TypeError, match=r"numbers cannot be run in a process pool: .* an iteration"
            ):
                await anext(items)

    asyncio.run(main())


def test_job_is_not_called_where_it_was_made() -> None:
    with pytest.raises(AssertionError, match="in another process only"):
        _processes.Job(functools.partial(abs, 1), "abs")()


# --- Cancellation ----------------------------------------------------------------------


def test_call_that_runs_is_waited_for_when_it_is_cancelled(
    pool: ProcessPoolExecutor, meeting: Meeting
) -> None:
    async def main() -> None:
        task = asyncio.create_task(there(in_processes.meet, pool)(meeting.address))
        await meeting.begin()
        task.cancel()
        assert not await settled(task)
        task.cancel()
        meeting.answer("too late")
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_call_that_raises_after_its_cancellation_names_the_error_as_the_cause(
    pool: ProcessPoolExecutor, meeting: Meeting, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        task = asyncio.create_task(there(in_processes.meet, pool)(meeting.address))
        await meeting.begin()
        task.cancel()
        meeting.answer(ValueError("in between"))
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        assert isinstance(caught.value.__cause__, ValueError)

    asyncio.run(main())
    assert "meet raised after its call was cancelled" in caplog.text


def test_call_that_runs_is_reported_when_it_runs_on_for_long_after_its_cancellation(
    pool: ProcessPoolExecutor,
    meeting: Meeting,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_call, "_OVERDUE_SECONDS", 0.0)

    async def main() -> None:
        task = asyncio.create_task(there(in_processes.meet, pool)(meeting.address))
        await meeting.begin()
        task.cancel()
        assert not await settled(task)
        meeting.answer(None)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert "meet was cancelled 0 s ago and is still running in a process of its pool" in caplog.text


def test_call_that_may_be_abandoned_is_let_go_at_once(
    pool: ProcessPoolExecutor, meeting: Meeting, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        meet = there(in_processes.meet, pool, abandon_on_cancel=True)
        task = asyncio.create_task(meet(meeting.address))
        await meeting.begin()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        meeting.answer(ValueError("nobody listens"))
        # The pool tells of its calls in order.
        assert await there(abs, pool)(-1) == 1

    asyncio.run(main())
    assert "meet raised after its call was abandoned" in caplog.text


def test_call_that_waits_is_withdrawn_when_it_is_cancelled(
    pool: ProcessPoolExecutor, meeting: Meeting
) -> None:
    async def main() -> None:
        first = asyncio.create_task(there(in_processes.meet, pool)(meeting.address))
        await meeting.begin()
        # A pool with one process keeps two ready.
        others = [asyncio.create_task(there(abs, pool)(-1)) for _ in range(2)]
        last = asyncio.create_task(there(in_processes.note, pool)("withdrawn"))
        assert not await settled(last)
        last.cancel()
        with pytest.raises(asyncio.CancelledError):
            await last
        meeting.answer("first")
        assert await first == "first"
        assert await asyncio.gather(*others) == [1, 1]
        assert "withdrawn" not in await there(in_processes.noted_there, pool)()

    asyncio.run(main())


class ManualPool(ProcessPoolExecutor):
    """A process pool without processes: the test completes its futures."""

    def __init__(self) -> None:
        self.futures: list[Future[Any]] = []

    def submit(self, *args: Any, **kwargs: Any) -> "Future[Any]":
        self.futures.append(Future())
        return self.futures[-1]


def test_call_that_its_pool_cancels_ends_cancelled_and_says_so() -> None:
    async def main() -> None:
        pool = ManualPool()
        task = asyncio.create_task(there(abs, pool)(-1))
        await settled(task)
        assert pool.futures[0].cancel()
        with pytest.raises(
            asyncio.CancelledError, match=r"the executor of builtins\.abs cancelled"
        ):
            await task

    asyncio.run(main())


def test_call_that_is_closed_while_it_waits_is_withdrawn() -> None:
    with hand_driven_loop() as loop:
        pool = ManualPool()
        coroutine = there(abs, pool)(-1)

        async def begin() -> None:
            coroutine.send(None)

        task = loop.create_task(begin())
        turn(loop, 2)
        task.result()
        coroutine.close()
        assert pool.futures[0].cancelled()


def test_call_that_is_closed_while_it_runs_runs_on_and_its_outcome_is_let_go() -> None:
    with hand_driven_loop() as loop:
        pool = ManualPool()
        coroutine = there(abs, pool)(-1)

        async def begin() -> None:
            coroutine.send(None)

        task = loop.create_task(begin())
        turn(loop, 2)
        task.result()
        assert pool.futures[0].set_running_or_notify_cancel()
        coroutine.close()
        pool.futures[0].set_exception(ValueError("late"))
        turn(loop)


def test_call_that_was_withdrawn_twice_was_withdrawn_once() -> None:
    async def main() -> None:
        pool = ManualPool()
        call = _processes.ProcessCall(asyncio.get_running_loop(), "abs", False, None)
        assert not call.abandon()
        call.submit(pool, lambda: None)
        assert call.abandon()
        assert not call.abandon()

    asyncio.run(main())


# --- The pool ----------------------------------------------------------------------------


def test_call_whose_process_ends_raises_that_the_pool_is_broken() -> None:
    async def main() -> None:
        with ProcessPoolExecutor(1, SPAWN) as pool:
            with pytest.raises(BrokenProcessPool):
                await there(in_processes.end_process, pool)()
            with pytest.raises(BrokenProcessPool):
                await there(abs, pool)(-1)

    asyncio.run(main())


def test_process_calls_what_it_was_told_to_after_each_call(pool: ProcessPoolExecutor) -> None:
    async def main() -> None:
        before = await there(in_processes.noted_there, pool)()
        after = await there(in_processes.noted_there, pool)()
        assert after == [*before, "after"]

    asyncio.run(main())


def test_process_whose_hook_raises_goes_on() -> None:
    async def main() -> None:
        with ProcessPoolExecutor(1, SPAWN, in_processes.fail_after_calls) as pool:
            assert [await there(abs, pool)(-one) for one in (1, 2)] == [1, 2]

    asyncio.run(main())


def test_call_without_process_pools_does_not_import_them() -> None:
    run_child(
        """
        import asyncio, sys
        from concurrent.futures import ThreadPoolExecutor
        from django_asyncbridge.bridge.sync import sync_to_async

        with ThreadPoolExecutor(1) as pool:
            call = sync_to_async(abs, thread_sensitive=False, executor=pool)
            assert asyncio.run(call(-1)) == 1
        assert "concurrent.futures.process" not in sys.modules
        """
    )


# --- Observers ---------------------------------------------------------------------------


@contextlib.contextmanager
def observed() -> Iterator[list[Crossing]]:
    crossings: list[Crossing] = []
    add_observer(crossings.append)
    try:
        yield crossings
    finally:
        remove_observer(crossings.append)


def test_observer_is_told_how_long_a_call_ran_in_which_process(pool: ProcessPoolExecutor) -> None:
    async def main() -> None:
        with observed() as crossings:
            process = await there(in_processes.note, pool)("observed")
            with pytest.raises(ZeroDivisionError):
                await there(in_processes.divide, pool)(1, 0)
        first, second = crossings
        assert first.function is in_processes.note
        assert first.thread == second.thread == f"process-{process}"
        assert first.started_at is not None
        assert first.queued_at < first.started_at <= first.ended_at
        assert (first.result, second.result) == ("returned", "raised")

    asyncio.run(main())


def test_observer_is_told_of_a_call_that_never_began() -> None:
    async def main() -> None:
        with observed() as crossings:
            task = asyncio.create_task(there(abs, ManualPool())(-1))
            await settled(task)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        (crossing,) = crossings
        assert (crossing.result, crossing.started_at, crossing.thread) == ("cancelled", None, None)

    asyncio.run(main())


# --- What is kept alive --------------------------------------------------------------------


def test_error_of_a_call_is_let_go_without_the_collector(pool: ProcessPoolExecutor) -> None:
    errors: list[weakref.ref[BaseException]] = []

    async def main() -> None:
        try:
            await there(in_processes.raise_frozen, pool)()
        except in_processes.FrozenError as error:
            errors.append(weakref.ref(error))
        # The pool lets go of a future when it has the next.
        assert await there(abs, pool)(-1) == 1

    with without_gc():
        asyncio.run(main())
        assert [error() for error in errors] == [None]
