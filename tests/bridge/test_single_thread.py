"""`AsyncSingleThreadContext`: whose thread and loop it is, who shares them, and what is refused."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, NoReturn

import pytest
import uvloop

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge._own_loop import LoopFactory
from django_asyncbridge.bridge._work import Work, WorkExecutor
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    async_to_sync,
    sync_to_async,
)
from tests.bridge import wait
from tests.support import run_child, run_in_thread

get_ident = sync_to_async(threading.get_ident)
each_factory = pytest.mark.parametrize("factory", [None, uvloop.new_event_loop])


class Place(NamedTuple):
    """Where a coroutine is."""

    loop: asyncio.AbstractEventLoop
    thread: threading.Thread


async def here() -> Place:
    return Place(asyncio.get_running_loop(), threading.current_thread())


async def here_after_work() -> tuple[Place, int]:
    return await here(), await get_ident()


kept_place = async_to_sync(here)

# --- One thread, one loop --------------------------------------------------------


@each_factory
def test_calls_in_a_block_share_a_thread_and_a_loop_from_their_first_step_on(
    factory: LoopFactory | None,
) -> None:
    function = AsyncToSync(here_after_work, loop_factory=factory)
    before = async_to_sync(here)()
    with AsyncSingleThreadContext():
        first, second = function(), function()
    assert first == second
    place, ident = first
    assert place.thread.name.startswith("asyncbridge-loop-")
    assert place.loop is not before.loop
    assert ident == threading.get_ident()
    assert place.loop.is_closed()
    assert async_to_sync(here)() == before


def test_call_that_forces_a_new_loop_has_one_in_the_block_s_thread_which_is_closed_at_its_end() -> (
    None
):
    with AsyncSingleThreadContext():
        forced, kept = AsyncToSync(here, force_new_loop=True)(), kept_place()
        assert forced.thread is kept.thread
        assert forced.loop is not kept.loop
        assert forced.loop.is_closed()
        assert kept_place() == kept


def test_block_in_a_block_changes_nothing() -> None:
    with AsyncSingleThreadContext() as outer:
        first = kept_place()
        with AsyncSingleThreadContext(), outer:
            assert kept_place() == first
        assert kept_place() == first
        assert not first.loop.is_closed()
    assert first.loop.is_closed()


def test_block_entered_again_has_another_loop() -> None:
    context = AsyncSingleThreadContext()
    places = []
    for _ in range(2):
        with context:
            places.append(kept_place())
    assert places[0].loop is not places[1].loop
    assert all(place.loop.is_closed() for place in places)


def test_block_in_which_nothing_is_called_makes_nothing() -> None:
    lent = _state.loop_workers.statistics().lent
    with AsyncSingleThreadContext() as context:
        pass
    assert _state.loop_workers.statistics().lent == lent
    assert context not in _state.single_thread_context_executors


def test_block_that_is_left_in_another_context_ends_all_the_same() -> None:
    context = AsyncSingleThreadContext()
    outside = contextvars.copy_context()
    outside.run(context.__enter__)
    place = outside.run(kept_place)
    context.__exit__(None, None, None)
    assert place.loop.is_closed()
    # The variable still names it there, but it is over.
    assert outside.run(kept_place) == kept_place()


def test_block_whose_executor_is_somebody_else_s_gets_a_worker() -> None:
    """Only an executor of ours can be asked to run a loop."""
    with AsyncSingleThreadContext() as context, ThreadPoolExecutor(1) as pool:
        _state.single_thread_context_executors[context] = pool
        assert kept_place().thread.name.startswith("asyncbridge-loop-")
        assert isinstance(_state.single_thread_context_executors[context], Lease)


# --- Several threads in one block ------------------------------------------------


def in_this_context(function: Callable[[], object]) -> threading.Thread:
    """Return a thread that calls `function` in a copy of the current context."""
    return threading.Thread(target=contextvars.copy_context().run, args=(function,))


@each_factory
def test_call_of_another_thread_waits_for_its_turn_and_gets_a_loop_of_its_own(
    factory: LoopFactory | None,
) -> None:
    begun = threading.Event()
    places: dict[str, Place] = {}
    idents: dict[str, int] = {}
    callers: dict[str, int] = {}

    async def hold() -> None:
        begun.set()
        while len(context.callers) < 2:
            await asyncio.sleep(0.001)
        places["first"], idents["first"] = await here_after_work()

    async def follow() -> None:
        places["second"], idents["second"] = await here_after_work()

    def first() -> None:
        callers["first"] = threading.get_ident()
        AsyncToSync(hold, loop_factory=factory)()

    def second() -> None:
        wait(begun)
        callers["second"] = threading.get_ident()
        AsyncToSync(follow, loop_factory=factory)()

    with AsyncSingleThreadContext() as context:
        threads = [in_this_context(function) for function in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert places["second"].loop.is_closed()
        assert not places["first"].loop.is_closed()
    assert idents == callers
    assert places["first"].thread is places["second"].thread
    assert places["first"].loop is not places["second"].loop


# --- What is refused -------------------------------------------------------------


IN_SINGLE_THREAD_CONTEXT = """
    import asyncio, threading
    from concurrent.futures import ThreadPoolExecutor
    from django_asyncbridge.bridge.sync import (
        AsyncSingleThreadContext, ThreadSensitiveContext, async_to_sync, sync_to_async
    )

    async def get_ident():
        await asyncio.sleep(0)
        return threading.get_ident()

    def nested(force_new_loop):
        try:
            return async_to_sync(get_ident, force_new_loop=force_new_loop)()
        except RuntimeError as error:
            return error

    async def by_thread():
        return await asyncio.to_thread(nested, False)

    async def by_force():
        return await sync_to_async(nested)(True)

    async def by_force_out_of_sight_of_the_caller():
        with ThreadPoolExecutor(1) as pool:
            async with ThreadSensitiveContext(executor=pool):
                return await sync_to_async(nested)(True)
"""


@pytest.mark.parametrize("way", ["by_thread", "by_force", "by_force_out_of_sight_of_the_caller"])
def test_call_below_one_that_has_the_single_thread_is_refused(way: str) -> None:
    """P4: the thread is busy until the inner call has ended, which waits for the thread."""
    child = run_child(
        IN_SINGLE_THREAD_CONTEXT
        + f"""
    with AsyncSingleThreadContext():
        print(async_to_sync({way})())
        # All is well for the next one.
        assert async_to_sync(get_ident)() != threading.get_ident()
    """,
        timeout_seconds=4,
    )
    assert "would deadlock" in child.stdout
    assert child.stderr == ""


# --- The thread that does not come -----------------------------------------------


class ManualExecutor(WorkExecutor):
    """Stands for the thread of a block, which comes to its work when the test says so."""

    def __init__(self) -> None:
        self.queue: list[Work] = []

    def post(self, work: Work) -> None:
        self.queue.append(work)

    def run_next(self) -> None:
        work = self.queue.pop(0)
        work.run()
        work.deliver()


def test_call_interrupted_while_another_has_the_thread_never_starts_its_coroutine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = ManualExecutor()

    def interrupted(*args: object) -> NoReturn:
        monkeypatch.setattr(CurrentThreadExecutor, "_serve", let_the_thread_go_on)
        raise KeyboardInterrupt

    def let_the_thread_go_on(*args: object) -> None:
        run_in_thread(worker.run_next)

    async def main() -> NoReturn:
        raise AssertionError("it ran")

    before = dict(_state.loop_thread_executors)
    with AsyncSingleThreadContext() as context:
        _state.single_thread_context_executors[context] = worker
        monkeypatch.setattr(CurrentThreadExecutor, "_serve", interrupted)
        with pytest.raises(KeyboardInterrupt):
            async_to_sync(main)()
    assert worker.queue == []
    assert _state.loop_thread_executors == before


def test_call_whose_thread_cannot_be_started_runs_in_the_calling_one() -> None:
    class Refusing(WorkExecutor):
        def post(self, work: Work) -> None:
            assert work.wanted()
            work.drop(RuntimeError("can't start new thread"))

    async def main() -> tuple[Place, str]:
        with pytest.raises(RuntimeError) as caught:
            await get_ident()
        return await here(), str(caught.value)

    with AsyncSingleThreadContext() as context:
        _state.single_thread_context_executors[context] = Refusing()
        place, error = async_to_sync(main)()
    assert place.thread is threading.current_thread()
    assert "can't start new thread" in error


def test_call_whose_loop_cannot_be_made_is_not_taken_for_one_that_has_the_thread() -> None:
    def fail() -> NoReturn:
        raise OSError("too many open files")

    with AsyncSingleThreadContext() as context:
        with pytest.raises(OSError, match="too many"):
            AsyncToSync(here, loop_factory=fail)()
        assert context.callers == set()
        assert kept_place().thread is not threading.current_thread()
