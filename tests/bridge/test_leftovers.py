"""`Leftovers`: what a coroutine leaves on its loop ends before the call returns, in any order and after any move."""

import asyncio
import collections.abc
import contextlib
import gc
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn

import pytest
import uvloop

from django_asyncbridge.bridge import _leftovers
from django_asyncbridge.bridge._own_loop import LoopFactory
from django_asyncbridge.bridge.sync import AsyncToSync, sync_to_async
from tests.bridge import wait

LOGGER = "django_asyncbridge.bridge.sync"
get_ident = sync_to_async(threading.get_ident)
Way = Callable[[], Awaitable[object]]


async def stay() -> None:
    """Leave the loop where it is."""
    await asyncio.sleep(0)


async def move() -> None:
    """Have the loop run in a worker from now on."""
    await get_ident()


each_way = pytest.mark.parametrize("way", [stay, move])
each_factory = pytest.mark.parametrize("factory", [None, uvloop.new_event_loop])


class Complaints(list[dict[str, Any]]):
    """What a loop's exception handler is given."""

    def handle(self, loop: asyncio.AbstractEventLoop, complaint: dict[str, Any]) -> None:
        self.append(complaint)


async def forever() -> None:
    await asyncio.Event().wait()


# --- Tasks -----------------------------------------------------------------------


@each_way
@each_factory
def test_task_left_over_is_cancelled_awaited_and_named_in_a_warning(
    factory: LoopFactory | None, way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []

    async def background() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            log.append("cleaned up")

    async def main() -> "asyncio.Task[None]":
        task = asyncio.create_task(background(), name="the mailer")
        await way()
        log.append("ended")
        return task

    task = AsyncToSync(main, loop_factory=factory)()
    assert log == ["ended", "cleaned up"]
    assert task.cancelled()
    assert [(r.name, r.levelno) for r in caplog.records] == [(LOGGER, logging.WARNING)]
    message = caplog.records[0].getMessage()
    assert message.endswith(
        "main ended, and with it the event loop's run; cancelled what it had started and not awaited: "
        "the mailer (test_task_left_over_is_cancelled_awaited_and_named_in_a_warning.<locals>.background)"
    )


@each_way
def test_call_that_leaves_nothing_over_says_nothing(
    way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    async def generator() -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        await asyncio.create_task(asyncio.sleep(0))
        await way()
        assert [number async for number in generator()] == [1]
        await asyncio.to_thread(int)

    AsyncToSync(main)()
    assert caplog.records == []


def test_task_that_a_failing_call_leaves_over_is_cancelled_as_well() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def main() -> NoReturn:
        tasks.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)
        raise LookupError

    with pytest.raises(LookupError):
        AsyncToSync(main)()
    assert tasks[0].cancelled()


def test_task_that_a_cancelled_task_starts_is_cancelled_in_the_next_round() -> None:
    tasks: list[asyncio.Task[None]] = []

    async def successor() -> None:
        try:
            await forever()
        finally:
            if len(tasks) < 3:
                tasks.append(asyncio.create_task(successor()))
                await asyncio.sleep(0)

    async def main() -> None:
        tasks.append(asyncio.create_task(successor()))
        await asyncio.sleep(0)

    AsyncToSync(main)()
    assert [task.cancelled() for task in tasks] == [True] * 3


def test_tasks_that_start_others_for_ever_do_not_keep_the_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """P4: only so many rounds; what is left then has been named in the log each time."""
    tasks: list[asyncio.Task[None]] = []
    last = _leftovers._ROUNDS

    async def successor() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            tasks.append(asyncio.create_task(successor()))
            await asyncio.sleep(0)

    async def main() -> None:
        tasks.append(asyncio.create_task(successor()))
        await asyncio.sleep(0)

    AsyncToSync(main, force_new_loop=True)()
    assert [task.done() for task in tasks] == [True] * last + [False]
    assert len(caplog.records) == last
    tasks[-1]._log_destroy_pending = False  # type: ignore[attr-defined]  # what it is for
    tasks[-1].get_coro().close()


@each_factory
def test_task_that_raises_when_it_is_cancelled_is_reported_to_the_loop(
    factory: LoopFactory | None,
) -> None:
    complaints = Complaints()
    error = LookupError("in the clean-up")

    async def background() -> None:
        try:
            await forever()
        finally:
            raise error

    async def named() -> None:
        asyncio.get_running_loop().set_exception_handler(complaints.handle)
        kept.append(asyncio.create_task(background()))
        kept.append(asyncio.create_task(ending()))
        await asyncio.sleep(0)

    async def ending() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        return "answer"

    kept: list[asyncio.Task[Any]] = []
    AsyncToSync(named, loop_factory=factory)()
    assert [complaint["exception"] for complaint in complaints] == [error]
    assert "named raised when it was cancelled" in complaints[0]["message"]
    assert kept[1].result() == "answer"


def test_task_without_a_coroutine_s_name_is_named_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Nameless:
        """What a task takes for a coroutine."""

        def send(self, value: object) -> object:
            return None

        def throw(self, error: BaseException) -> NoReturn:
            raise error

        def close(self) -> None: ...

        def __await__(self) -> Any: ...

        cr_await = cr_code = cr_frame = cr_running = cr_origin = None

    collections.abc.Coroutine.register(Nameless)

    async def main() -> None:
        kept.append(asyncio.Task(Nameless(), name="nameless"))  # type: ignore[arg-type]  # is tested
        await asyncio.sleep(0)

    kept: list[asyncio.Task[Any]] = []
    AsyncToSync(main)()
    assert kept[0].cancelled()
    assert caplog.records[0].getMessage().endswith("not awaited: nameless")


# --- Async generators --------------------------------------------------------------


class Generator:
    """An async generator that notes where it was closed."""

    def __init__(self) -> None:
        self.closed_in: list[int] = []

    async def __call__(self) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            self.closed_in.append(await get_ident())


@each_way
@each_factory
@pytest.mark.parametrize("begins_before", [True, False])
def test_generator_left_over_is_closed_before_the_call_returns(
    factory: LoopFactory | None, way: Way, begins_before: bool
) -> None:
    generator = Generator()

    async def main() -> object:
        numbers = generator()
        if begins_before:
            await anext(numbers)
        await way()
        await anext(numbers)
        return numbers

    kept = AsyncToSync(main, loop_factory=factory)()
    assert generator.closed_in == [threading.get_ident()]
    del kept


def test_generator_that_begins_while_the_loop_moves_is_closed_before_the_call_returns() -> None:
    """After the loop was stopped here, and before the worker watches it: only asyncio's own loop knows."""
    generator = Generator()
    kept: list[object] = []

    async def main() -> None:
        async def begin() -> None:
            numbers = generator()
            await anext(numbers)
            kept.append(numbers)

        await asyncio.gather(get_ident(), begin(), get_ident())

    AsyncToSync(main)()
    assert generator.closed_in == [threading.get_ident()]


def test_generator_that_has_ended_is_left_alone() -> None:
    generator = Generator()

    async def main() -> None:
        assert [number async for number in generator()] == [1, 2]

    AsyncToSync(main)()
    assert generator.closed_in == [threading.get_ident()]


@each_way
@each_factory
def test_generator_that_was_dropped_in_the_last_step_is_closed_before_the_call_returns(
    factory: LoopFactory | None, way: Way
) -> None:
    """P6: as by a ``break`` out of an ``async for``; the loop has a callback for it, but no task."""
    generator = Generator()

    async def main() -> None:
        await way()
        await anext(generator())
        gc.collect()

    async def nothing() -> None:
        pass

    AsyncToSync(main, loop_factory=factory)()
    closed_in = list(generator.closed_in)
    AsyncToSync(nothing, loop_factory=factory)()
    assert closed_in == [threading.get_ident()]


@each_way
def test_generator_that_raises_at_its_end_is_reported_to_the_loop(way: Way) -> None:
    complaints = Complaints()
    error = LookupError("in the clean-up")

    async def failing() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise error

    async def main() -> object:
        asyncio.get_running_loop().set_exception_handler(complaints.handle)
        numbers = failing()
        await way()
        await anext(numbers)
        return numbers

    kept = AsyncToSync(main)()
    assert [complaint["exception"] for complaint in complaints] == [error]
    assert repr(kept) in complaints[0]["message"]


# --- Functions in threads ----------------------------------------------------------


@pytest.fixture
def released() -> Iterator[threading.Event]:
    released = threading.Event()
    yield released
    released.set()


@each_way
@each_factory
def test_function_left_over_in_a_thread_is_waited_for(
    factory: LoopFactory | None, way: Way, released: threading.Event
) -> None:
    """P6: also if the task that awaited it was cancelled."""
    log: list[str] = []
    began = threading.Event()

    def function() -> None:
        began.set()
        wait(released)
        log.append(threading.current_thread().name.rpartition("-")[0])

    async def clean_up() -> None:
        try:
            await asyncio.to_thread(function)
        finally:
            # The function is still running.
            asyncio.get_running_loop().call_later(0.01, released.set)
            log.append("task cancelled")

    async def main() -> None:
        tasks.append(asyncio.create_task(clean_up()))
        await way()
        while not began.is_set():
            await asyncio.sleep(0.001)

    tasks: list[asyncio.Task[None]] = []
    AsyncToSync(main, loop_factory=factory)()
    assert log == ["task cancelled", "asyncbridge-default"]
    assert tasks[0].cancelled()


def test_function_left_over_that_needs_the_loop_finds_it_running(
    released: threading.Event,
) -> None:
    async def answer() -> str:
        return "answer"

    def function(loop: asyncio.AbstractEventLoop) -> None:
        answers.append(asyncio.run_coroutine_threadsafe(answer(), loop).result(10))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, function, loop)

    answers: list[str] = []
    AsyncToSync(main)()
    assert answers == ["answer"]


def test_function_in_a_thread_raises_where_it_is_awaited() -> None:
    def fail() -> NoReturn:
        raise LookupError

    async def main() -> None:
        with pytest.raises(LookupError):
            await asyncio.to_thread(fail)

    AsyncToSync(main)()


# --- Loops of other kinds, and of no use any more ----------------------------------


@each_way
def test_generator_on_a_loop_without_the_usual_hooks_is_closed_before_the_call_returns(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P6: then the hooks are set in the running loop."""
    monkeypatch.setattr(_leftovers, "_FIRST_HOOK", "_hook_of_another_library")
    generator = Generator()
    kept: list[AsyncIterator[int]] = []

    async def main() -> None:
        await way()
        kept.append(generator())
        await anext(kept[0])

    AsyncToSync(main, force_new_loop=True)()
    assert len(generator.closed_in) == 1


def test_generator_that_is_dropped_after_its_loop_was_closed_is_left_alone() -> None:
    loop = asyncio.new_event_loop()
    leftovers = _leftovers.Leftovers(loop)
    loop.close()
    generator: Any = Generator()()
    leftovers._note_end(generator)
    assert not leftovers._dropped


@each_factory
def test_signal_handler_of_the_loop_is_taken_back_when_the_call_ends(
    factory: LoopFactory | None,
) -> None:
    """P2: the loop is kept, but it handles nothing while it does not run."""
    before = signal.getsignal(signal.SIGUSR2)
    seen: list[str] = []

    async def main() -> None:
        handled = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR2, handled.set)
        loop.add_signal_handler(signal.SIGUSR2, handled.set)
        os.kill(os.getpid(), signal.SIGUSR2)
        await handled.wait()
        seen.append("handled")

    AsyncToSync(main, loop_factory=factory)()
    assert seen == ["handled"]
    assert signal.getsignal(signal.SIGUSR2) == before


def test_clean_up_that_is_interrupted_each_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds: list[str] = []

    async def interrupted(self: object, described: str, cancelled: object) -> None:
        rounds.append(described)
        raise asyncio.CancelledError

    monkeypatch.setattr(_leftovers.Leftovers, "_end", interrupted)

    async def main() -> None:
        loop = asyncio.new_event_loop()
        await _leftovers.Leftovers(loop).end("tests.work")
        loop.close()

    asyncio.run(main())
    assert rounds == ["tests.work"] * _leftovers._ROUNDS
