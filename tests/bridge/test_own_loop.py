"""A loop for one coroutine: its thread, what is left behind in it, and every way in which it cannot start."""

import asyncio
import contextlib
import contextvars
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NoReturn

import pytest

from django_asyncbridge.bridge import _own_loop, _state
from django_asyncbridge.bridge._run import Run
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.sync import AsyncSingleThreadContext, async_to_sync, sync_to_async
from tests.bridge import ManualExecutor, wait
from tests.support import run_child, run_in_thread

get_ident = sync_to_async(threading.get_ident)


async def current() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    return asyncio.get_running_loop(), threading.current_thread()


@pytest.fixture
def broken_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no thread start any more, as at the interpreter's exit."""

    def refuse(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


# --- The thread and its loop -----------------------------------------------------


def test_own_loop_after_the_call_is_closed_and_its_thread_has_ended() -> None:
    loop, thread = async_to_sync(current)()
    assert loop.is_closed()
    assert not thread.is_alive()
    assert thread.name.startswith("asyncbridge-loop-")
    assert loop not in _state.loop_thread_executors


def test_own_loop_of_two_calls_is_a_new_one_each_time() -> None:
    first, second = async_to_sync(current)(), async_to_sync(current)()
    assert first[0] is not second[0]
    assert first[1].name != second[1].name


def test_own_loop_serves_the_calling_thread_for_tasks_that_have_no_context_of_the_caller() -> None:
    async def main() -> int:
        empty = contextvars.Context()
        return await asyncio.get_running_loop().create_task(get_ident(), context=empty)

    assert async_to_sync(main)() == threading.get_ident()


def test_own_loop_closes_what_the_coroutine_left_behind_before_the_call_returns() -> None:
    log: list[object] = []

    async def leftover() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            # What is cancelled may need the calling thread, which still serves it.
            log.append(await get_ident())

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            log.append(await get_ident())

    async def main() -> object:
        kept = asyncio.create_task(leftover()), generator()
        await anext(kept[1])
        log.append("ended")
        return kept

    kept = async_to_sync(main)()
    assert log == ["ended", threading.get_ident(), threading.get_ident()]
    del kept


def test_own_loop_that_a_task_ends_with_system_exit_raises_it_in_the_calling_thread() -> None:
    cancelled = threading.Event()

    async def leave() -> NoReturn:
        raise SystemExit(3)

    async def main() -> None:
        task = asyncio.create_task(leave())
        try:
            await asyncio.Event().wait()
        finally:
            # Retrieved here; the task itself has told nobody else.
            task.exception()
            cancelled.set()

    with pytest.raises(SystemExit):
        async_to_sync(main)()
    assert cancelled.is_set()


def test_own_loop_whose_task_is_cancelled_before_its_first_step_raises_cancelled_error() -> None:
    """As when a signal handler's interruption comes just after the start."""

    def cancel_first(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> Any:
        task = asyncio.Task(coroutine, loop=loop, **kwargs)
        task.cancel()
        loop.set_task_factory(None)
        return task

    def new_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.SelectorEventLoop()
        loop.set_task_factory(cancel_first)
        return loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.events, "new_event_loop", new_loop)
        patch.setattr(asyncio, "new_event_loop", new_loop)
        with pytest.raises(asyncio.CancelledError):
            async_to_sync(current)()


# --- What cannot start -----------------------------------------------------------


@pytest.mark.usefixtures("broken_threads")
def test_own_loop_without_a_thread_runs_in_the_calling_thread() -> None:
    assert async_to_sync(current)()[1] is threading.current_thread()


@pytest.mark.usefixtures("broken_threads")
def test_own_loop_without_a_thread_refuses_work_for_the_calling_thread() -> None:
    with pytest.raises(RuntimeError, match="submitted from that thread itself"):
        async_to_sync(get_ident)()


def test_own_loop_without_a_thread_leaves_the_threads_event_loop_as_it_was(
    broken_threads: None,
) -> None:
    """P2: who has set an event loop for the thread finds it there after the call."""
    before = asyncio.new_event_loop()
    asyncio.set_event_loop(before)
    try:
        async_to_sync(current)()
        assert asyncio.get_event_loop() is before
    finally:
        asyncio.set_event_loop(None)
        before.close()


def fail_to_make_a_loop(patch: pytest.MonkeyPatch) -> None:
    def fail() -> NoReturn:
        raise OSError("too many open files")

    patch.setattr(asyncio.events, "new_event_loop", fail)
    patch.setattr(asyncio, "new_event_loop", fail)


def refuse_to_run(patch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> NoReturn:
        raise OSError("the context's executor was shut down")

    patch.setattr(_own_loop, "loop_worker_of", refuse)


@pytest.mark.parametrize("breaks", [fail_to_make_a_loop, refuse_to_run])
def test_own_loop_that_cannot_be_had_raises_and_leaves_no_coroutine_behind(
    breaks: Callable[[pytest.MonkeyPatch], None], recwarn: pytest.WarningsRecorder
) -> None:
    """P4: the error is the only thing that is said; no coroutine is reported as never awaited."""
    with AsyncSingleThreadContext(), pytest.MonkeyPatch.context() as patch:
        breaks(patch)
        with pytest.raises(OSError, match=r"too many|shut down"):
            async_to_sync(current)()
    gc.collect()
    assert recwarn.list == []


class InterruptedStart:
    """Runs coroutines that are interrupted while the thread for them starts."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.ended = threading.Event()
        self.start = threading.Thread.start

    async def coroutine(self) -> None:
        """Wait to be cancelled."""
        self.began.set()
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 1)
        finally:
            self.ended.set()

    def run(self, before: Callable[[threading.Thread], object]) -> threading.Thread:
        """Start one, interrupted after `before`; return its thread."""
        threads: list[threading.Thread] = []

        def start(thread: threading.Thread) -> NoReturn:
            threads.append(thread)
            before(thread)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(KeyboardInterrupt):
                async_to_sync(self.coroutine)()
        return threads[0]


def test_own_loop_interrupted_while_its_thread_starts_cancels_the_coroutine() -> None:
    """C32: `Thread.start` waits, so that is where a Ctrl-C just before the call takes effect."""
    interrupted = InterruptedStart()
    thread = interrupted.run(interrupted.start)
    # It may have found the coroutine cancelled before it came to it, and be ending.
    thread.join(0.5)
    assert not thread.is_alive()
    assert interrupted.began.is_set() == interrupted.ended.is_set()


def test_own_loop_interrupted_after_its_coroutine_began_waits_for_the_end_of_it() -> None:
    """The same, later: the new thread has already come to the coroutine."""

    def start_and_wait(thread: threading.Thread) -> None:
        interrupted.start(thread)
        wait(interrupted.began)

    interrupted = InterruptedStart()
    thread = interrupted.run(start_and_wait)
    assert interrupted.ended.is_set()
    assert not thread.is_alive()


def test_own_loop_interrupted_before_its_thread_started_has_the_coroutine_never_start(
    recwarn: pytest.WarningsRecorder,
) -> None:
    interrupted = InterruptedStart()
    thread = interrupted.run(lambda thread: None)
    gc.collect()
    assert recwarn.list == []
    assert thread.ident is None
    assert not interrupted.began.is_set()


def test_own_loop_interrupted_before_its_thread_has_an_ident_does_not_leave_it_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread is under way, but not yet so far that anybody can see it."""
    come = threading.Event()
    start_run = Run.start

    def start_and_tell(run: Run, loop: asyncio.AbstractEventLoop) -> None:
        start_run(run, loop)
        come.set()

    def late_ident(thread: threading.Thread) -> None:
        interrupted.start(thread)
        wait(come)

    interrupted = InterruptedStart()
    monkeypatch.setattr(Run, "start", start_and_tell)
    monkeypatch.setattr(threading.Thread, "ident", property(late_ident))
    thread = interrupted.run(lambda thread: None)
    thread.join(0.5)
    assert not thread.is_alive()
    assert interrupted.began.is_set() == interrupted.ended.is_set()


class Interruptions:
    """Has the calling thread interrupted in its wait, again and again, when the coroutine has begun."""

    def __init__(self, patch: pytest.MonkeyPatch, times: int) -> None:
        self.times = times
        self.began = threading.Event()
        patch.setattr(CurrentThreadExecutor, "_run_until", self.run_until)

    def run_until(self, *args: object) -> NoReturn:
        wait(self.began)
        self.times -= 1
        # One more than there should be would wait for ever.
        assert self.times >= 0
        raise KeyboardInterrupt


def test_own_loop_interrupted_twice_does_not_wait_for_the_coroutine_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C32: as `Run.wait` says. The thread is a daemon, and does not keep the process."""
    release = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    threads: list[threading.Thread] = []

    async def stubborn() -> None:
        loops.append(asyncio.get_running_loop())
        threads.append(threading.current_thread())
        interruptions.began.set()
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    def call() -> None:
        with pytest.raises(KeyboardInterrupt):
            async_to_sync(stubborn)()

    interruptions = Interruptions(monkeypatch, 2)
    try:
        run_in_thread(call, timeout_seconds=3)
    finally:
        loops[0].call_soon_threadsafe(release.set)
        threads[0].join(10)
    assert threads[0].daemon


def test_own_loop_interrupted_once_more_when_the_coroutine_has_ended_does_not_wait_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P4: nothing will come to the calling thread any more; only the loop's thread has to be joined."""
    join = threading.Thread.join

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        monkeypatch.setattr(threading.Thread, "join", join)
        raise KeyboardInterrupt

    def call() -> None:
        monkeypatch.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            async_to_sync(current)()

    # Not run_in_thread: that joins.
    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    join(caller, 3)
    assert not caller.is_alive()


# --- In the thread of an AsyncSingleThreadContext --------------------------------


@pytest.fixture
def manual_worker() -> Iterator[ManualExecutor]:
    """Enter an `AsyncSingleThreadContext` whose thread comes to its work when the test says so."""
    with AsyncSingleThreadContext() as context:
        worker = ManualExecutor()
        _state.single_thread_context_executors[context] = worker
        yield worker


def test_own_loop_in_a_single_thread_context_runs_in_its_thread() -> None:
    with AsyncSingleThreadContext():
        first, second = async_to_sync(current)(), async_to_sync(current)()
        assert first[1] is second[1]
        assert first[1].is_alive()
        assert first[0] is not second[0]
        assert first[0].is_closed()
    assert not first[1].is_alive()


def test_own_loop_interrupted_while_another_has_the_thread_never_starts_its_coroutine(
    manual_worker: ManualExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        monkeypatch.setattr(CurrentThreadExecutor, "_run_until", let_the_thread_go_on)
        raise KeyboardInterrupt

    def let_the_thread_go_on(*args: object) -> None:
        run_in_thread(manual_worker.run_next)

    async def main() -> NoReturn:
        raise AssertionError("it ran")

    before = dict(_state.loop_thread_executors)
    monkeypatch.setattr(CurrentThreadExecutor, "_run_until", interrupted)
    with pytest.raises(KeyboardInterrupt):
        async_to_sync(main)()
    assert manual_worker.queue == []
    assert _state.loop_thread_executors == before


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
def test_own_loop_below_one_that_has_the_single_thread_does_not_wait_for_it_for_ever(
    way: str,
) -> None:
    """P4: the thread is busy until the inner call has ended, which waits for the thread."""
    child = run_child(
        IN_SINGLE_THREAD_CONTEXT
        + f"""
    with AsyncSingleThreadContext():
        print(async_to_sync({way})())
    """,
        timeout_seconds=4,
    )
    assert child.stderr == ""


def test_own_loop_in_a_single_thread_context_of_another_thread_waits_for_its_turn() -> None:
    """The thread is busy with a call that will end by itself."""
    begun, release = threading.Event(), threading.Event()

    async def hold() -> threading.Thread:
        begun.set()
        await asyncio.to_thread(wait, release)
        return threading.current_thread()

    idents: list[object] = []

    def first() -> None:
        idents.append(async_to_sync(hold)())

    def second() -> None:
        wait(begun)
        threading.Timer(0, release.set).start()
        idents.append(async_to_sync(current)()[1])

    with AsyncSingleThreadContext():
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(function,))
            for function in (first, second)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(idents)) == 1
