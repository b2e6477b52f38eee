"""`OwnLoop`: in which thread it runs, when it moves, what may interrupt it, and in which state it is left."""

import asyncio
import contextlib
import contextvars
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from queue import Empty
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import pytest
import uvloop

from django_asyncbridge.bridge import _own_loop, _state
from django_asyncbridge.bridge._own_loop import LoopFactory, OwnLoop
from django_asyncbridge.bridge._work import Work, WorkExecutor
from django_asyncbridge.bridge.current_thread_executor import (
    CurrentThreadExecutor,
    _ForkedError,
    _hosted,
)
from django_asyncbridge.bridge.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    async_to_sync,
    sync_to_async,
)
from tests.support import run_in_thread

get_ident = sync_to_async(threading.get_ident)
each_factory = pytest.mark.parametrize("factory", [None, uvloop.new_event_loop])


class Place(NamedTuple):
    """Where a coroutine is."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread


async def here() -> Place:
    return Place(asyncio.get_running_loop(), threading.current_thread())


async def moved() -> Place:
    """Be where a coroutine is after thread-sensitive work."""
    await get_ident()
    return await here()


async def stay() -> Place:
    """Be where a coroutine is without thread-sensitive work."""
    await asyncio.sleep(0)
    return await here()


#: What a coroutine does first, so that its loop runs here or in a worker.
WAYS: dict[str, Callable[[], Coroutine[Any, Any, Place]]] = {"here": stay, "in_worker": moved}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
kept_place = async_to_sync(here)


def assert_in_order() -> None:
    """Check that nothing of an earlier call is left in this thread, and that the next one works."""
    assert _hosted.host is None
    assert asyncio._get_running_loop() is None
    assert _state.current_executor.get() is None
    loop, thread = kept_place()
    assert thread is threading.current_thread()
    assert loop not in _state.loop_thread_executors
    assert async_to_sync(moved)().loop is loop
    assert asyncio.all_tasks(loop) == set()


@pytest.fixture(autouse=True)
def in_order() -> Iterator[None]:
    yield
    assert_in_order()


class Executor(WorkExecutor):
    """Stands for the workers of loops; the test says what becomes of what is posted."""

    def __init__(self, post: Callable[[Work], object]) -> None:
        self._post = post

    def post(self, work: Work) -> None:
        self._post(work)


@contextlib.contextmanager
def broken_threads() -> Iterator[None]:
    """Have no thread start for an event loop any more, as at the interpreter's exit."""
    refusing = Executor(lambda work: work.drop(RuntimeError("can't start new thread")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_state, "loop_workers", refusing)
        yield


# --- The thread ------------------------------------------------------------------


@each_factory
def test_own_loop_that_needs_nothing_of_the_calling_thread_runs_in_it_and_nowhere_else(
    factory: LoopFactory | None,
) -> None:
    lent = _state.loop_workers.statistics().lent
    assert AsyncToSync(stay, loop_factory=factory)().thread is threading.current_thread()
    assert _state.loop_workers.statistics().lent == lent


@each_factory
def test_own_loop_moves_to_a_worker_when_the_calling_thread_is_needed(
    factory: LoopFactory | None,
) -> None:
    places: list[Place] = []

    def function() -> None:
        places.append(Place(places[0].loop, threading.current_thread()))

    async def main() -> None:
        places.append(await here())
        await sync_to_async(function)()
        places.append(await here())
        await sync_to_async(function)()
        places.append(await here())

    AsyncToSync(main, loop_factory=factory)()
    assert {place.loop for place in places} == {places[0].loop}
    caller, worker = threading.current_thread(), places[2].thread
    assert [place.thread for place in places] == [caller, caller, worker, caller, worker]
    assert worker.name.startswith("asyncbridge-loop-")


@each_factory
def test_own_loop_after_a_move_begins_the_next_call_here_again(
    factory: LoopFactory | None,
) -> None:
    first = AsyncToSync(moved, loop_factory=factory)()
    second = AsyncToSync(here, loop_factory=factory)()
    assert second == (first.loop, threading.current_thread())


def test_own_loop_gives_its_worker_back_before_the_call_returns() -> None:
    first, second = async_to_sync(moved)(), async_to_sync(moved)()
    assert first.thread is second.thread
    statistics = _state.loop_workers.statistics()
    assert statistics.idle == statistics.workers


def test_own_loop_that_is_asked_to_move_twice_in_one_turn_serves_both_in_order() -> None:
    order: list[tuple[int, int]] = []

    async def main() -> None:
        def function(number: int) -> None:
            order.append((number, threading.get_ident()))

        await asyncio.gather(*(sync_to_async(function)(number) for number in range(3)))

    async_to_sync(main)()
    assert order == [(number, threading.get_ident()) for number in range(3)]


def test_own_loop_serves_the_calling_thread_for_tasks_that_have_no_context_of_the_caller() -> None:
    async def main() -> int:
        empty = contextvars.Context()
        return await asyncio.get_running_loop().create_task(get_ident(), context=empty)

    assert async_to_sync(main)() == threading.get_ident()


def test_own_loop_moves_for_a_task_that_is_cancelled_after_the_coroutine_has_ended() -> None:
    log: list[object] = []

    async def leftover() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append(await get_ident())
            log.append((await here()).thread.name.rpartition("-")[0])

    async def main() -> object:
        task = asyncio.create_task(leftover())
        await asyncio.sleep(0)
        log.append((await here()).thread)
        return task

    kept = async_to_sync(main)()
    assert log == [threading.current_thread(), threading.get_ident(), "asyncbridge-loop"]
    del kept


def test_own_loop_of_a_call_below_one_is_the_same_one_in_the_worker() -> None:
    async def main() -> tuple[Place, Place]:
        return await sync_to_async(kept_place)(), await here()

    inner, outer = async_to_sync(main)()
    assert inner == outer
    assert inner.thread is not threading.current_thread()


@each_way
def test_own_loop_forced_below_one_runs_in_the_calling_thread_and_may_move_as_well(
    way: Callable[[], Coroutine[Any, Any, Place]],
) -> None:
    async def inner() -> tuple[Place, int]:
        await way()
        return await here(), await get_ident()

    async def main() -> tuple[tuple[Place, int], Place]:
        forced = async_to_sync(inner, force_new_loop=True)
        return await sync_to_async(forced)(), await here()

    (place, ident), outer = async_to_sync(main)()
    assert place.loop is not outer.loop
    assert place.loop.is_closed()
    assert (place.thread is threading.current_thread()) == (way is stay)
    assert place.thread is not outer.thread
    assert ident == threading.get_ident()


def test_own_loop_of_a_thread_below_one_is_kept_for_that_thread() -> None:
    async def main() -> tuple[Place, Place]:
        return await asyncio.to_thread(kept_place), await here()

    inner, outer = async_to_sync(main)()
    assert inner.loop is not outer.loop
    assert inner.thread is not outer.thread
    assert outer.thread is threading.current_thread()


def test_own_loop_in_a_coroutine_blocked_by_a_call_refuses_it_and_goes_on() -> None:
    async def main() -> Place:
        with pytest.raises(RuntimeError, match="just await"):
            kept_place()
        return await moved()

    assert async_to_sync(main)().thread is not threading.current_thread()


# --- What a coroutine changes about it -------------------------------------------


def lazily(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> "asyncio.Task[Any]":
    return asyncio.Task(coroutine, loop=loop, **options)


def settings(loop: asyncio.AbstractEventLoop) -> tuple[object, object, bool]:
    return loop.get_task_factory(), loop.get_exception_handler(), loop.get_debug()


@each_way
@each_factory
@pytest.mark.parametrize("fails", [False, True])
def test_own_loop_settings_changed_in_one_call_do_not_reach_the_next(
    factory: LoopFactory | None, way: Callable[[], Coroutine[Any, Any, Place]], fails: bool
) -> None:
    async def change() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lazily)
        loop.set_exception_handler(lambda loop, complaint: None)
        loop.set_debug(not loop.get_debug())
        await way()
        if fails:
            raise LookupError

    async def look() -> tuple[object, object, bool]:
        return settings(asyncio.get_running_loop())

    before = AsyncToSync(look, loop_factory=factory)()
    with pytest.raises(LookupError) if fails else contextlib.nullcontext():
        AsyncToSync(change, loop_factory=factory)()
    assert AsyncToSync(look, loop_factory=factory)() == before


def lazy_loop() -> asyncio.AbstractEventLoop:
    """Make a loop with a task factory of its own."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(lazily)
    return loop


def eager_loop() -> asyncio.AbstractEventLoop:
    """Make a loop whose tasks begin at once, in Python 3.12 and later."""
    loop = asyncio.new_event_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))
    return loop


def test_own_loop_settings_of_its_factory_stay() -> None:
    async def change() -> object:
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(None)
        return factory

    change_on_it = AsyncToSync(change, loop_factory=lazy_loop)
    assert [change_on_it(), change_on_it()] == [lazily, lazily]


@each_way
def test_own_loop_with_eager_tasks_runs_moves_and_is_used_again(
    way: Callable[[], Coroutine[Any, Any, Place]],
) -> None:
    async def main() -> Place:
        await asyncio.create_task(way())
        return await way()

    run = AsyncToSync(main, loop_factory=eager_loop)
    assert run() == run()


# --- Stopped by others -----------------------------------------------------------


@each_way
@each_factory
@pytest.mark.parametrize("times", [1, 2])
def test_own_loop_that_the_coroutine_stops_runs_on_until_all_has_ended(
    factory: LoopFactory | None, way: Callable[[], Coroutine[Any, Any, Place]], times: int
) -> None:
    """Nothing waits for its stop; the coroutine would never end (P4)."""

    async def main() -> list[Place]:
        places = [await way()]
        for _ in range(3):
            for _ in range(times):
                asyncio.get_running_loop().stop()
            await asyncio.sleep(0.001)
            places.append(await way())
        return places

    for _ in range(2):
        places = AsyncToSync(main, loop_factory=factory)()
        assert set(places) == {places[0]}


@each_way
@each_factory
def test_own_loop_that_the_coroutine_stops_last_is_not_stopped_in_the_next_call(
    factory: LoopFactory | None, way: Callable[[], Coroutine[Any, Any, Place]]
) -> None:
    async def main() -> None:
        await way()
        asyncio.get_running_loop().stop()

    AsyncToSync(main, loop_factory=factory)()
    assert AsyncToSync(stay, loop_factory=factory)().thread is threading.current_thread()
    assert AsyncToSync(moved, loop_factory=factory)().thread is not threading.current_thread()


@each_way
@each_factory
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_own_loop_that_a_task_ends_with_its_exit_raises_it_in_the_calling_thread(
    factory: LoopFactory | None,
    way: Callable[[], Coroutine[Any, Any, Place]],
    error: BaseException,
) -> None:
    log: list[str] = []

    async def leave() -> NoReturn:
        raise error

    async def main() -> None:
        await way()
        task = asyncio.create_task(leave())
        try:
            await asyncio.Event().wait()
        finally:
            # Retrieved here; the task itself has told nobody else.
            assert task.exception() is error
            await get_ident()
            log.append("cleaned up")

    with pytest.raises(type(error)) as caught:
        AsyncToSync(main, loop_factory=factory)()
    assert caught.value is error
    assert log == ["cleaned up"]


@each_way
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_own_loop_whose_coroutine_raises_an_exit_raises_it_in_the_calling_thread(
    way: Callable[[], Coroutine[Any, Any, Place]], error: BaseException
) -> None:
    async def main() -> NoReturn:
        await way()
        raise error

    with pytest.raises(type(error)) as caught:
        async_to_sync(main)()
    assert caught.value is error


# --- No task, no thread ----------------------------------------------------------


def cancelling_loop() -> asyncio.AbstractEventLoop:
    """Make a loop whose tasks are cancelled before their first step."""

    def cancel_first(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        task = lazily(loop, coroutine, **options)
        task.cancel()
        return task

    loop = asyncio.new_event_loop()
    loop.set_task_factory(cancel_first)
    return loop


def refusing_loop() -> asyncio.AbstractEventLoop:
    """Make a loop that makes no tasks."""

    def refuse(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> NoReturn:
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    loop.set_task_factory(refuse)
    return loop


def never_awaited(recwarn: pytest.WarningsRecorder) -> list[str]:
    """Return what Python said of coroutines; the collector may find other tests' garbage as well."""
    return [str(one.message) for one in recwarn if issubclass(one.category, RuntimeWarning)]


@pytest.mark.parametrize(
    ("factory", "error"),
    [(cancelling_loop, asyncio.CancelledError), (refusing_loop, KeyboardInterrupt)],
)
def test_own_loop_whose_task_never_begins_raises_why_and_leaves_no_coroutine_behind(
    factory: LoopFactory, error: type[BaseException], recwarn: pytest.WarningsRecorder
) -> None:
    """As when it is interrupted just before or just after the start."""
    with pytest.raises(error):
        AsyncToSync(here, loop_factory=factory)()
    gc.collect()
    assert never_awaited(recwarn) == []


def test_own_loop_that_cannot_be_made_raises_and_leaves_no_coroutine_behind(
    recwarn: pytest.WarningsRecorder,
) -> None:
    def fail() -> NoReturn:
        raise OSError("too many open files")

    with pytest.raises(OSError, match="too many"):
        AsyncToSync(here, loop_factory=fail)()
    gc.collect()
    assert never_awaited(recwarn) == []


def test_own_loop_without_a_worker_runs_what_does_without_the_calling_thread() -> None:
    with broken_threads():
        assert async_to_sync(stay)().thread is threading.current_thread()


def test_own_loop_without_a_worker_refuses_work_for_the_calling_thread_and_goes_on() -> None:
    async def main() -> Place:
        both = await asyncio.gather(get_ident(), get_ident(), return_exceptions=True)
        assert [str(error) for error in both] == ["can't start new thread"] * 2
        with pytest.raises(RuntimeError, match=r"no thread .*\(can't start new thread\)"):
            await get_ident()
        return await stay()

    with broken_threads():
        loop, thread = async_to_sync(main)()
    assert thread is threading.current_thread()
    # It is tried again in the next call.
    assert async_to_sync(moved)().loop is loop


# --- Interruptions: wherever the calling thread is, as a signal handler's exception comes ----


class Interrupted(BaseException):
    """What a signal handler raises in the calling thread."""


class Victim:
    """A coroutine that is interrupted at some point, and cleans up with the help of the calling thread."""

    def __init__(self, way: Callable[[], Coroutine[Any, Any, Place]] = stay) -> None:
        self.way = way
        self.log: list[str] = []
        self.in_the_loop: Callable[[], object] = lambda: None

    async def coroutine(self) -> None:
        self.log.append("began")
        try:
            await self.way()
            self.in_the_loop()
            await asyncio.Event().wait()
        finally:
            await get_ident()
            self.log.append("cleaned up")

    def call(self) -> None:
        run_in_thread(async_to_sync(self.coroutine))


def interrupting(
    patch: pytest.MonkeyPatch, owner: type, name: str, when: str, times: int = 1
) -> None:
    """Interrupt the first calls of a method, before or after what it does."""
    original = getattr(owner, name)
    left = [Interrupted() for _ in range(times)]

    def method(*args: Any) -> Any:
        if left and when == "before":
            raise left.pop()
        result = original(*args)
        if left:
            raise left.pop()
        return result

    patch.setattr(owner, name, method)


POOL = type(_state.loop_workers)
STEPS = [
    (OwnLoop, "_run_here", "before"),
    (OwnLoop, "_run_here", "after"),
    (OwnLoop, "_hand_to_worker", "before"),
    (OwnLoop, "_hand_to_worker", "after"),
    (POOL, "post", "before"),
    (POOL, "post", "after"),
    (CurrentThreadExecutor, "_serve", "before"),
    (CurrentThreadExecutor, "_serve", "after"),
]


async def moved_and_returned() -> Place:
    """Come to the end of the coroutine, where nothing waits any more."""
    await get_ident()
    raise LookupError


@pytest.mark.parametrize(("owner", "name", "when"), STEPS)
def test_own_loop_interrupted_at_a_step_raises_when_the_coroutine_has_cleaned_up(
    owner: type, name: str, when: str
) -> None:
    """C32: the next step follows, whichever it is."""
    victim = Victim(moved_and_returned if (name, when) == ("_serve", "after") else moved)

    def call() -> None:
        with pytest.MonkeyPatch.context() as patch:
            interrupting(patch, owner, name, when)
            async_to_sync(victim.coroutine)()

    with pytest.raises(Interrupted):
        run_in_thread(call)
    assert victim.log == ["began", "cleaned up"]


def test_own_loop_interrupted_before_its_task_begins_never_begins_it(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = Victim()
    interrupting(monkeypatch, OwnLoop, "_begin", "before")
    with pytest.raises(Interrupted):
        victim.call()
    monkeypatch.undo()
    gc.collect()
    assert never_awaited(recwarn) == []
    assert victim.log == []


@each_factory
def test_own_loop_interrupted_in_its_innermost_raises_when_the_coroutine_has_cleaned_up(
    factory: LoopFactory | None,
) -> None:
    """A signal handler's exception leaves the loop in the middle of a turn."""

    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    victim = Victim()
    victim.in_the_loop = lambda: asyncio.get_running_loop().call_soon(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_in_thread(AsyncToSync(victim.coroutine, loop_factory=factory))
    assert victim.log == ["began", "cleaned up"]


class Stubborn:
    """A coroutine that is interrupted twice and does not end when it is cancelled, until it is released.

    Args:
        way: brings it to where it is interrupted.
        options: for `AsyncToSync`.
    """

    def __init__(self, way: Callable[[], Coroutine[Any, Any, Place]], **options: Any) -> None:
        self.way = way
        self.call_it = AsyncToSync(self.coroutine, **options)
        self.place: Place | None = None
        self.began, self.released = threading.Event(), threading.Event()

    async def coroutine(self) -> None:
        """Be cancelled again and again."""
        self.place = await self.way()
        self.began.set()
        while not self.released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)

    def call(self) -> None:
        """Call it and see it given up."""

        def serve(executor: CurrentThreadExecutor, *args: Any) -> NoReturn:
            while not self.began.wait(0.001):
                with contextlib.suppress(Empty):
                    work = executor._queue.get_nowait()
                    assert work is not None
                    work.run()
                    work.deliver()
            raise Interrupted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CurrentThreadExecutor, "_serve", serve)
            with pytest.raises(Interrupted):
                self.call_it()

    def release(self) -> None:
        """Let it end, and wait until its worker is free again."""
        self.released.set()
        while _state.loop_workers.statistics().idle < _state.loop_workers.statistics().workers:
            time.sleep(0.001)


def test_own_loop_interrupted_twice_is_left_to_its_worker_which_closes_it() -> None:
    """C32: a second Ctrl-C does not wait for the coroutine any more."""
    stubborn = Stubborn(moved)
    try:
        before = kept_place().loop
        stubborn.call()
        assert stubborn.place is not None
        assert stubborn.place.loop is before
        assert before.is_running()
        # The next call does not meet it.
        assert kept_place().loop is not before
    finally:
        stubborn.release()
    assert before.is_closed()


def test_own_loop_made_for_one_call_interrupted_twice_is_left_to_its_worker() -> None:
    stubborn = Stubborn(moved, force_new_loop=True)
    try:
        stubborn.call()
    finally:
        stubborn.release()
    assert stubborn.place is not None
    assert stubborn.place.loop.is_closed()


# --- A worker that cannot go on ------------------------------------------------------


class Failing:
    """Stands for a loop that raises whenever it is run, until `turns` have come."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self.closed = False

    def run_forever(self) -> None:
        self.turns -= 1
        raise SystemExit(self.turns)

    def done(self) -> bool:
        return self.turns == 0

    def is_running(self) -> bool:
        return False

    def is_closed(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


def failing(turns: int) -> tuple[OwnLoop, Any]:
    """Return a loop that fails, and a run whose task ends with its last turn."""
    own = OwnLoop(asyncio.new_event_loop)
    own.loop.close()
    loop: Any = Failing(turns)
    own.loop = loop
    return own, SimpleNamespace(task=loop, interruption=None, _cancel_task=lambda: None)


def test_worker_whose_loop_raises_twice_keeps_the_first_error() -> None:
    own, run = failing(2)
    own._turn_in_worker(run)
    assert run.interruption.code == 1


def test_worker_whose_loop_was_given_up_stops_at_its_error() -> None:
    own, run = failing(2)
    own.spoiled = True
    own._turn_in_worker(run)
    assert own.loop.turns == 1  # type: ignore[attr-defined]


def test_own_loop_that_is_given_up_while_nobody_runs_it_is_closed() -> None:
    own = OwnLoop(asyncio.new_event_loop)
    own._spoil()
    assert own.loop.is_closed()


def test_hosting_that_is_ended_from_outside_tells_the_waiting_thread() -> None:
    executor = CurrentThreadExecutor(None)

    class Ended:
        spoiled = False

        def _turn_in_worker(self, run: object) -> NoReturn:
            raise SystemExit

    own: Any = Ended()
    run: Any = SimpleNamespace(executor=executor)
    hosting = _own_loop._Hosting(own, run)
    with pytest.raises(SystemExit):
        hosting.run()
    executor._serve(hosting.is_done)


def test_fork_that_comes_back_in_the_served_thread_is_no_interruption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P8: the call raises at once: its coroutine is the parent's."""

    def forked(self: object, *args: object) -> NoReturn:
        raise _ForkedError("tested")

    with AsyncSingleThreadContext(), monkeypatch.context() as patch:
        patch.setattr(OwnLoop, "_step", forked)
        with pytest.raises(_ForkedError, match="tested"):
            AsyncToSync(stay)()
