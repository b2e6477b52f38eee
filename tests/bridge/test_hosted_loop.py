"""`HostedLoop`: in which thread a loop of asyncio.Runner runs, which thread is home, and in which state both are left."""

import asyncio
import collections
import contextvars
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NoReturn

import pytest
import uvloop

from django_asyncbridge.bridge import _hosted_loop, _hosted_turn, _mirror, _state
from django_asyncbridge.bridge._hosted_loop import HostedLoop, _HomeExecutor, hosted_of
from django_asyncbridge.bridge._work import Work
from django_asyncbridge.bridge.current_thread_executor import (
    CurrentThreadExecutor,
    _ForkedError,
    _hosted,
)
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django_asyncbridge.testing import home_thread
from tests.support import run_child, run_in_thread

ident = threading.get_ident
get_ident = sync_to_async(ident)
each_factory = pytest.mark.parametrize("factory", [None, uvloop.new_event_loop])
each_start = pytest.mark.parametrize("moved", [False, True], ids=["here", "in_worker"])


@pytest.fixture(autouse=True)
def home() -> Generator[None]:
    with home_thread():
        yield
    assert _hosted.host is None
    assert asyncio._get_running_loop() is None
    assert _state.current_executor.get() is None
    assert _state.loop_thread_executors == {}


@pytest.fixture(params=[None, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Generator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner


async def move(moved: bool = True) -> None:
    """Have the loop move to a worker, or not."""
    if moved:
        assert await get_ident() != ident()


def wait_until(done: Callable[[], bool]) -> None:
    """Wait for a worker, in a loop of one line."""
    collections.deque(iter(done, True), maxlen=0)


# --- Threads -----------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
def test_home_every_way_of_calling_runs_in_the_waiting_thread(
    runner: asyncio.Runner, debug: bool
) -> None:
    async def main() -> list[int]:
        threads = [await get_ident(), *await asyncio.gather(*(get_ident() for _ in range(3)))]
        threads.append(await sync_to_async(async_to_sync(get_ident))())
        threads.append(await sync_to_async(async_to_sync(get_ident, force_new_loop=True))())
        threads.append(await sync_to_async(lambda: asyncio.run(get_ident()))())
        async with ThreadSensitiveContext():
            threads.append(await get_ident())
        threads.append(await asyncio.create_task(get_ident(), context=contextvars.Context()))
        return threads

    runner.get_loop().set_debug(debug)
    for _ in range(3):
        assert set(runner.run(main())) == {ident()}


def test_home_insensitive_work_runs_elsewhere(runner: asyncio.Runner) -> None:
    elsewhere = sync_to_async(ident, thread_sensitive=False)
    assert runner.run(elsewhere()) != ident()


def test_loop_that_needs_no_thread_stays(runner: asyncio.Runner) -> None:
    async def main() -> set[int]:
        before = ident()
        await asyncio.sleep(0)
        return {before, ident()}

    assert runner.run(main()) == {ident()}


def test_loop_that_moved_begins_here_again(runner: asyncio.Runner) -> None:
    async def main() -> tuple[int, int]:
        before = ident()
        await get_ident()
        return before, ident()

    for _ in range(3):
        before, after = runner.run(main())
        assert before == ident() != after


def test_home_of_another_thread_is_untouched(runner: asyncio.Runner) -> None:
    runner.run(move())
    shared = run_in_thread(lambda: asyncio.run(get_ident()))
    assert shared == async_to_sync(get_shared_ident)()
    # The same loop, without and then with a home there.
    assert run_in_thread(lambda: runner.run(get_ident())) == shared

    def at_home() -> bool:
        with home_thread():
            return runner.run(get_ident()) == ident()

    assert run_in_thread(at_home)
    assert runner.run(get_ident()) == ident()


async def get_shared_ident() -> int:
    return await asyncio.wrap_future(_state.shared_worker.submit(ident))


def test_nested_run_in_a_sync_function_has_both_homes(runner: asyncio.Runner) -> None:
    outer_ran: list[int] = []

    async def inner(outer: Callable[[], Coroutine[Any, Any, int]]) -> int:
        outer_ran.append(await get_ident())
        return ident()

    async def main() -> int:
        return await sync_to_async(lambda: asyncio.run(inner(get_ident)))()

    assert runner.run(main()) != ident()
    assert outer_ran == [ident()]


def test_task_that_outlives_a_nested_run_finds_the_outer_home(runner: asyncio.Runner) -> None:
    async def leave() -> contextvars.Context:
        return contextvars.copy_context()

    async def main() -> int:
        context = await sync_to_async(lambda: asyncio.run(leave()))()
        executor = context[_state.current_executor]
        assert executor is not None
        assert not executor._open
        return await asyncio.create_task(get_ident(), context=context)

    assert runner.run(main()) == ident()


# --- What Runner.run promises --------------------------------------------------------


@each_start
def test_run_that_raises_raises_it(runner: asyncio.Runner, moved: bool) -> None:
    async def main() -> NoReturn:
        await move(moved)
        raise LookupError("as expected")

    with pytest.raises(LookupError, match="as expected"):
        runner.run(main())


@each_start
def test_run_that_is_cancelled_raises_it(runner: asyncio.Runner, moved: bool) -> None:
    async def main() -> None:
        await move(moved)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        runner.run(main())


@each_start
def test_run_that_exits_raises_it(runner: asyncio.Runner, moved: bool) -> None:
    async def main() -> NoReturn:
        await move(moved)
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        runner.run(main())
    assert runner.run(get_ident()) == ident()


@each_start
def test_run_of_a_loop_that_is_stopped_raises(runner: asyncio.Runner, moved: bool) -> None:
    async def main() -> None:
        await move(moved)
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed"):
        runner.run(main())


def test_run_in_a_running_loop_is_refused(runner: asyncio.Runner) -> None:
    async def main() -> None:
        coroutine = move()
        with pytest.raises(RuntimeError, match="running event loop"):
            runner.run(coroutine)
        coroutine.close()
        with pytest.raises(RuntimeError, match="running"):
            runner.get_loop().run_forever()

    runner.run(main())


def test_run_in_a_context_in_use_is_left_to_asyncio() -> None:
    context = contextvars.copy_context()
    with asyncio.Runner() as runner:
        hosted = hosted_of(runner.get_loop())
        assert hosted is not None
        assert context.run(hosted.run_in, context, lambda: "ran") == "ran"


def test_run_of_a_closed_loop_is_refused() -> None:
    runner = asyncio.Runner()
    loop = runner.get_loop()
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_forever()


@pytest.mark.parametrize("given", [False, True])
def test_context_variables_stay_in_the_context_of_the_run(given: bool) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="before")
    context = contextvars.Context() if given else None

    async def main(value: str) -> str:
        before = var.get()
        var.set(value)
        await sync_to_async(var.set)(value + " in a thread")
        return before

    with asyncio.Runner() as runner:
        assert runner.run(main("first"), context=context) == "before"
        assert runner.run(main("second"), context=context) == "first in a thread"
    assert var.get() == "before"
    if context is not None:
        assert context[var] == "second in a thread"
        assert _state.current_executor not in context


# --- Loops that run more than once -----------------------------------------------------


@each_factory
def test_task_left_on_the_loop_goes_on_in_the_next_run(factory: Any) -> None:
    threads: list[int] = []

    async def beat() -> None:
        while True:
            threads.append(await get_ident())

    async def start() -> "asyncio.Task[None]":
        return asyncio.create_task(beat())

    async def wait(beats: int) -> None:
        beats += len(threads)
        while len(threads) < beats:
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=factory) as runner:
        task = runner.run(start())
        for beats in range(30):
            runner.run(wait(beats % 4))
            runner.get_loop().run_until_complete(wait(1))
            assert not task.done()
    assert task.cancelled()
    assert set(threads) == {ident()}


def test_work_left_at_the_end_of_a_run_is_done_and_told_in_the_next(
    runner: asyncio.Runner,
) -> None:
    async def start() -> "asyncio.Task[int]":
        task = asyncio.create_task(get_ident())
        # Its first step, which wants the loop to move, and the last of this one are in the same turn.
        await asyncio.sleep(0)
        return task

    async def end(task: "asyncio.Task[int]") -> int:
        return await task

    for _ in range(3):
        assert runner.run(end(runner.run(start()))) == ident()


def test_run_forever_ends_with_stop(runner: asyncio.Runner) -> None:
    loop = runner.get_loop()
    loop.stop()
    loop.run_forever()
    threads = []

    async def main() -> None:
        threads.append(await get_ident())
        loop.stop()

    for _ in range(3):
        task = loop.create_task(main())
        loop.run_forever()
        assert task.done()
    assert threads == [ident()] * 3


def test_stop_of_a_run_without_a_home_is_not_kept(runner: asyncio.Runner) -> None:
    runner.get_loop()
    run_in_thread(lambda: runner.run(asyncio.sleep(0)))
    assert runner.run(get_ident()) == ident()


def test_stop_in_the_turn_of_a_move_is_heeded_once(runner: asyncio.Runner) -> None:
    loop, home = runner.get_loop(), ident()
    for turns in range(4):

        async def main(turns: int = turns) -> None:
            task = asyncio.create_task(get_ident())
            for _ in range(turns):
                await asyncio.sleep(0)
            loop.stop()
            assert await task == home
            loop.stop()

        task = loop.create_task(main())
        while not task.done():
            loop.run_forever()
        task.result()
        assert runner.run(get_ident()) == ident()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a task does not tell its context")
def test_values_of_threads_go_with_the_tasks_when_the_loop_moves(runner: asyncio.Runner) -> None:
    owner: contextvars.ContextVar[int] = contextvars.ContextVar("owner")
    moved = asyncio.Event()

    async def sibling() -> tuple[int, int]:
        await moved.wait()
        return owner.get(), ident()

    async def main() -> tuple[int, int]:
        task = asyncio.create_task(sibling())
        await asyncio.sleep(0)
        await get_ident()
        moved.set()
        return await task

    def adopt() -> None:
        owner.set(ident())

    before = _mirror._arrival_hook
    _mirror.on_arrival(adopt)
    try:
        owner_of_sibling, thread = runner.run(main(), context=(context := contextvars.Context()))
    finally:
        _mirror.on_arrival(before)
    assert owner_of_sibling == thread != ident()
    assert context[owner] == ident()


# --- Interruptions ---------------------------------------------------------------------


class _AlarmError(Exception):
    """What a signal handler raises, as that of pytest-timeout does."""


@pytest.fixture
def alarm() -> Generator[Callable[[], None]]:
    def on_alarm(number: int, frame: object) -> NoReturn:
        raise _AlarmError

    before = signal.signal(signal.SIGUSR1, on_alarm)
    main = threading.main_thread().ident
    assert main is not None
    yield functools.partial(signal.pthread_kill, main, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)


def test_exception_of_a_signal_handler_ends_the_run_and_not_the_task(
    runner: asyncio.Runner, alarm: Callable[[], None]
) -> None:
    tasks: list[Any] = []

    async def main() -> str:
        tasks.append(asyncio.current_task())
        await move()
        alarm()
        await caught.wait()
        return "went on"

    caught = asyncio.Event()

    with pytest.raises(_AlarmError):
        runner.run(main())
    assert not tasks[0].done()
    caught.set()
    assert runner.get_loop().run_until_complete(tasks[0]) == "went on"


def test_interrupted_run_of_a_loop_that_is_blocked_is_given_up(
    alarm: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hosted_turn, "_STUCK_SECONDS", 0.01)
    monkeypatch.setattr(_hosted_turn, "LOOKS_SECONDS", 0.01)
    monkeypatch.setattr(_hosted_loop, "LOOKS_SECONDS", 0.01)
    released, left = threading.Event(), threading.Event()

    async def main() -> None:
        await move()
        alarm()
        released.wait()
        asyncio.get_running_loop().call_soon(left.set)

    runner = asyncio.Runner()
    loop = runner.get_loop()
    with pytest.raises(_AlarmError) as caught:
        runner.run(main())
    assert "did not stop within" in caught.value.__notes__[0]
    released.set()
    assert left.wait(10)
    wait_until(lambda: not loop.is_running())
    runner.close()


@pytest.mark.parametrize("where", ["here", "in_worker", "sync", "at_the_end"])
def test_ctrl_c_cancels_the_task_and_raises(where: str) -> None:
    ended: list[str] = []

    async def main() -> None:
        await move(where != "here")
        try:
            if where == "sync":
                await sync_to_async(signal.raise_signal)(signal.SIGINT)
            else:
                signal.raise_signal(signal.SIGINT)
            if where != "at_the_end":
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert ended == ([] if where == "at_the_end" else ["cancelled"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_raises_at_once() -> None:
    async def main() -> None:
        await move()
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            # The main thread handles one at a time.
            with pytest.raises(asyncio.CancelledError):
                await asyncio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_handler_of_the_loop_goes_on_after_the_move() -> None:
    # Not of uvloop's: in a worker that hears of no signals.
    async def main() -> int:
        handled: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: handled.set_result(ident()))
        try:
            await move()
            os.kill(os.getpid(), signal.SIGUSR1)
            return await handled
        finally:
            await sync_to_async(loop.remove_signal_handler)(signal.SIGUSR1)

    assert asyncio.run(main()) != ident()


# --- Without a worker ------------------------------------------------------------------


def test_move_without_a_worker_fails_the_call_and_not_the_run(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(work: Work) -> None:
        work.drop(RuntimeError("can't start new thread"))
        work.drop(None)

    async def main() -> int:
        for match in ("can't start new thread", "no thread could be started"):
            with pytest.raises(RuntimeError, match=match):
                await get_ident()
        return ident()

    with monkeypatch.context() as patch:
        patch.setattr(_state.loop_workers, "post", refuse)
        assert runner.run(main()) == ident()
    assert runner.run(get_ident()) == ident()


def test_loop_whose_methods_cannot_be_replaced_runs_as_ever() -> None:
    class Slotted(asyncio.SelectorEventLoop):
        def __setattr__(self, name: str, value: object) -> None:
            if name == "run_until_complete":
                raise AttributeError(name)
            super().__setattr__(name, value)

    with asyncio.Runner(loop_factory=Slotted) as runner:
        assert runner.run(get_ident()) != ident()
        assert hosted_of(runner.get_loop()) is None


def test_hosted_loop_is_made_once(runner: asyncio.Runner) -> None:
    hosted = hosted_of(runner.get_loop())
    assert isinstance(hosted, HostedLoop)
    assert hosted_of(runner.get_loop()) is hosted


# --- Forks -----------------------------------------------------------------------------


def test_wait_that_a_forked_child_comes_back_to_is_left_at_once(
    runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def come_back(
        executor: CurrentThreadExecutor, done: Callable[[], bool], *args: object
    ) -> NoReturn:
        # The work is dropped, so the task ends, and with it the run in the worker.
        executor._abort()
        wait_until(done)
        raise _ForkedError("in the parent only")

    with monkeypatch.context() as patch:
        patch.setattr(CurrentThreadExecutor, "_serve", come_back)
        with pytest.raises(RuntimeError, match="in the parent only"):
            runner.run(get_ident())
    assert runner.run(get_ident()) == ident()


@pytest.mark.parametrize("when", ["in_the_run", "between_runs"])
def test_fork_ends_or_goes_on_without_a_hang(when: str) -> None:
    child = run_child(
        """
        import asyncio, os, sys, threading, warnings
        from django_asyncbridge import sync_to_async
        from django_asyncbridge.testing import home_thread

        warnings.simplefilter("ignore")
        get_ident = sync_to_async(threading.get_ident)

        def wait(child):
            assert os.waitpid(child, 0)[1] == 0

        async def fork_in_the_run():
            def fork():
                child = os.fork()
                if child:
                    wait(child)
            await sync_to_async(fork)()

        with home_thread():
            parent, runner = os.getpid(), asyncio.Runner()
            runner.run(get_ident())
            if sys.argv[1] == "between_runs":
                child = os.fork()
                if child:
                    wait(child)
                assert runner.run(get_ident()) == threading.get_ident()
                if not child:
                    os._exit(0)
            else:
                try:
                    runner.run(fork_in_the_run())
                except RuntimeError as error:
                    assert "forked" in str(error) and os.getpid() != parent, error
                    os._exit(0)
                assert os.getpid() == parent
            assert runner.run(get_ident()) == threading.get_ident()
            runner.close()
            print("ok")
        """,
        when,
    )
    assert child.stdout == "ok\n"


def test_home_that_finishes_passes_over_the_mark_of_an_end() -> None:
    home = _HomeExecutor()
    home.open()
    home._queue.put(None)
    home.finish()
    assert home._queue.empty()
