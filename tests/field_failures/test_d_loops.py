"""Sections B and D: event loops that `async_to_sync` makes, and the threads that they take."""

import asyncio
import contextvars
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop

from django_asyncbridge.bridge.sync import (
    AsyncSingleThreadContext,
    AsyncToSync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)
from tests.field_failures.common import HOMES, Main, end_of, noop
from tests.support import run_child, run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
get_ident = sync_to_async(threading.get_ident)

# --- C24 (section B): failures leave no threads --------------------------------------


def test_c24_failing_top_level_calls_leave_no_threads() -> None:
    """C24: the thread of a call does not live on in the traceback of its failure."""
    run_child(
        """
        import asyncio, gc, threading
        from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async

        async def boom():
            raise ValueError

        async def nested_boom():
            await sync_to_async(threading.get_ident)()
            await sync_to_async(lambda: async_to_sync(boom)())()

        gc.disable()
        for function in (boom, nested_boom):
            for force_new_loop in (False, True):
                for _ in range(10):
                    try:
                        async_to_sync(function, force_new_loop=force_new_loop)()
                    except ValueError:
                        pass
        # The worker that ran the loops of the nested calls stays, to be used again.
        names = sorted(thread.name for thread in threading.enumerate())
        assert names == ["MainThread", "asyncbridge-loop-1"], names
        """
    )


@pytest.mark.usefixtures("no_gc")
def test_c24_failing_calls_in_a_pool_thread_leave_no_threads() -> None:
    """C24: the same in a thread that is not the main thread."""

    async def boom() -> None:
        await sync_to_async(noop)()
        raise ValueError

    def fail() -> set[threading.Thread]:
        before = set(threading.enumerate())
        for _ in range(10):
            with pytest.raises(ValueError, match=r"^$"):
                async_to_sync(boom)()
        return set(threading.enumerate()) - before

    # One worker may be new: it stays, to be used again.
    left = run_in_thread(fail)
    assert len(left) <= 1
    assert all(thread.name.startswith("asyncbridge-loop-") for thread in left)


# --- C38-C42: the loop of a top-level call ---------------------------------------------


class Pool:
    """Keeps one connection open over several calls, as the pools of client libraries do."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def echo(self, line: bytes) -> bytes:
        """Write a line, answer it at the other end, and read the answer."""
        if self.streams is None:
            self.streams = await asyncio.open_connection(sock=self.ours)
        reader, writer = self.streams
        writer.write(line)
        await writer.drain()
        await sync_to_async(self.answer)()
        return await reader.readline()

    def answer(self) -> None:
        self.theirs.sendall(self.theirs.recv(100))

    async def close(self) -> None:
        assert self.streams is not None
        self.streams[1].close()
        await self.streams[1].wait_closed()
        self.theirs.close()


each_loop_factory = pytest.mark.parametrize("loop_factory", [None, uvloop.new_event_loop])


@each_loop_factory
def test_c38_connection_of_one_top_level_call_is_used_in_the_next(loop_factory: Any) -> None:
    """C38: it belongs to the thread's loop, which stays; "Event loop is closed" elsewhere."""

    def use() -> list[bytes]:
        pool = Pool()
        echo = AsyncToSync(pool.echo, loop_factory=loop_factory)
        answers = [echo(line) for line in (b"one\n", b"two\n", b"three\n")]
        AsyncToSync(pool.close, loop_factory=loop_factory)()
        return answers

    assert run_in_thread(use) == [b"one\n", b"two\n", b"three\n"]


async def place() -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    await asyncio.sleep(0)
    return asyncio.get_running_loop(), threading.current_thread()


def test_c39_single_thread_context_keeps_its_thread_and_its_loop() -> None:
    """C39: both are the block's, from its first call to its end."""

    def use() -> None:
        with AsyncSingleThreadContext():
            first = async_to_sync(place)()
            assert async_to_sync(place)() == first
            assert first[1] is not threading.current_thread()
        with AsyncSingleThreadContext():
            assert async_to_sync(place)()[0] is not first[0]

    run_in_thread(use)


def test_c40_top_level_calls_start_no_threads() -> None:
    """C40: the loop runs in the calling thread, and if it has to move, in a worker that is used again."""
    run_child(
        """
        import asyncio, threading
        from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async

        started = []
        start = threading.Thread.start

        def counting_start(thread):
            started.append(thread.name)
            start(thread)

        threading.Thread.start = counting_start

        async def nothing():
            await asyncio.sleep(0)
            return threading.current_thread()

        async def serves():
            return await sync_to_async(threading.current_thread)()

        for _ in range(50):
            assert async_to_sync(nothing)() is threading.main_thread()
        assert started == [], started
        for _ in range(50):
            assert async_to_sync(serves)() is threading.main_thread()
        assert started == ["asyncbridge-loop-1"], started
        """
    )


def test_c41_task_that_nobody_awaited_is_named_when_it_is_cancelled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """C41: under ASGI it would have run on; nobody has to wonder why it does not here."""
    tasks = []

    async def send_mail() -> None:
        await asyncio.sleep(10)

    async def view() -> None:
        tasks.append(asyncio.create_task(send_mail(), name="mail-1"))
        await asyncio.sleep(0)

    run_in_thread(async_to_sync(view))
    assert tasks[0].cancelled()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("django_asyncbridge.bridge.sync", logging.WARNING)
    for name in ("view", "mail-1", "send_mail"):
        assert name in record.getMessage()


def test_c42_loop_factory_makes_the_loops_of_top_level_calls() -> None:
    """C42: with a server on uvloop, these calls can use it as well."""

    def use() -> None:
        on_uvloop = AsyncToSync(place, loop_factory=uvloop.new_event_loop)
        assert type(on_uvloop()[0]) is uvloop.Loop
        assert on_uvloop() == on_uvloop()
        assert type(async_to_sync(place)()[0]) is not uvloop.Loop
        with AsyncSingleThreadContext():
            assert type(on_uvloop()[0]) is uvloop.Loop

    run_in_thread(use)


# --- C45: eager tasks ------------------------------------------------------------------

Factory = Callable[..., "asyncio.Task[Any]"] | None
#: The task factories of this Python: eager tasks came with 3.12.
FACTORIES: list[Factory] = [None, *filter(None, [getattr(asyncio, "eager_task_factory", None)])]
each_factory = pytest.mark.parametrize("factory", FACTORIES)
HomeRunner = Callable[[Main[Any]], Any]


def with_factory(factory: Factory, main: Main[Any]) -> Main[Any]:
    """Return a `main` whose loop makes its tasks with `factory`."""

    async def with_tasks_of_factory() -> Any:
        asyncio.get_running_loop().set_task_factory(factory)
        return await asyncio.create_task(main())

    return with_tasks_of_factory


@each_home
@each_factory
def test_c45_nested_calls_in_tasks_of_any_factory_run_in_their_home_thread(
    home: HomeRunner, factory: Factory
) -> None:
    """C45: an eager task begins inside its maker's step; its calls still cross and return."""

    async def task() -> set[int]:
        return {await get_ident(), await get_ident()}

    async def view() -> set[int]:
        tasks = [asyncio.create_task(task()) for _ in range(3)]
        return set[int]().union(*await asyncio.gather(*tasks))

    async def main() -> bool:
        return await sync_to_async(lambda: async_to_sync(view)() == {threading.get_ident()})()

    assert home(with_factory(factory, main))


@each_home
@each_factory
def test_c45_context_variables_in_tasks_of_any_factory_stay_with_their_task(
    home: HomeRunner, factory: Factory
) -> None:
    """C45: what sync code sets in an eager task is seen there and in no other task."""
    variable = contextvars.ContextVar("variable", default="unset")

    async def task(value: str) -> str:
        assert await sync_to_async(variable.get)() == "main"
        await sync_to_async(variable.set)(value)
        await asyncio.sleep(0)
        return variable.get() + await sync_to_async(variable.get)()

    async def main() -> tuple[list[str], str]:
        variable.set("main")
        tasks = [asyncio.create_task(task(value)) for value in "abc"]
        return await asyncio.gather(*tasks), variable.get()

    assert home(with_factory(factory, main)) == (["aa", "bb", "cc"], "main")


@each_home
@each_factory
def test_c45_cancelled_task_of_any_factory_ends_cancelled(
    home: HomeRunner, factory: Factory
) -> None:
    """C45: cancellation finds its way through an eager task as well."""

    async def main() -> bool:
        started = asyncio.Event()

        async def view() -> None:
            started.set()
            await asyncio.sleep(10)

        task = asyncio.create_task(sync_to_async(async_to_sync(view))())
        await started.wait()
        task.cancel()
        await end_of(task)
        return task.cancelled()

    assert home(with_factory(factory, main))


@each_factory
def test_c45_many_contexts_in_tasks_of_any_factory_keep_their_threads(factory: Factory) -> None:
    """C45: eager tasks that each open a context do not find each other's thread."""

    async def request() -> bool:
        async with ThreadSensitiveContext():
            first = await get_ident()
            await asyncio.sleep(0)
            return first == await get_ident()

    async def main() -> list[bool]:
        return await asyncio.gather(*(request() for _ in range(20)))

    run = with_factory(factory, main)
    assert run_in_thread(lambda: asyncio.run(run())) == [True] * 20


# --- C46, P6: what a top-level call leaves behind ------------------------------------------


def run_top_level(main: Main[Any]) -> Any:
    """Run `main` on the loop of a top-level call that does nothing in its caller's thread."""
    return run_in_thread(async_to_sync(main))


def run_top_level_on_a_new_loop(main: Main[Any]) -> Any:
    """Run `main` on a loop made for this call alone."""
    return run_in_thread(async_to_sync(main, force_new_loop=True))


def run_top_level_that_serves(main: Main[Any]) -> Any:
    """Run `main` on the loop of a top-level call that has served its caller's thread."""

    async def served() -> Any:
        await sync_to_async(noop)()
        return await main()

    return run_in_thread(async_to_sync(served))


each_top_level = pytest.mark.parametrize(
    "top_level", [run_top_level, run_top_level_on_a_new_loop, run_top_level_that_serves]
)


@each_top_level
def test_c46_abandoned_async_generator_is_closed_when_the_call_returns(
    top_level: HomeRunner,
) -> None:
    """C46: a generator that nobody finished runs its `finally`, awaiting included, before the end."""
    kept, closed = [], []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append("closed")

    async def main() -> int:
        generator = numbers()
        # Kept alive, so that only the end of the loop can close it.
        kept.append(generator)
        return await anext(generator)

    assert top_level(main) == 1
    assert closed == ["closed"]


@each_top_level
@pytest.mark.parametrize("fails", [False, True])
def test_p6_leftover_task_of_a_top_level_call_is_cancelled_and_awaited(
    top_level: HomeRunner, fails: bool
) -> None:
    """P6: a task that nobody awaited has cleaned up when the call returns or raises."""
    kept: list[asyncio.Task[None]] = []
    cleaned: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0)
            cleaned.append("cleaned")

    async def main() -> None:
        kept.append(asyncio.create_task(background()))
        await asyncio.sleep(0)
        if fails:
            raise ValueError("expected")

    end: Callable[[], Coroutine[Any, Any, None]] = main
    if fails:
        with pytest.raises(ValueError, match="expected"):
            top_level(end)
    else:
        top_level(end)
    assert cleaned == ["cleaned"]
    assert kept[0].cancelled()


@each_top_level
def test_p6_leftover_task_can_use_the_home_thread_while_it_cleans_up(
    top_level: HomeRunner,
) -> None:
    """P6, P1: the sync caller serves its thread until the leftovers have ended."""
    idents: list[int] = []

    async def background() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            idents.append(await get_ident())

    async def main() -> None:
        idents.append(await get_ident())
        tasks.add(asyncio.create_task(background()))
        await asyncio.sleep(0)

    tasks: set[asyncio.Task[None]] = set()
    top_level(main)
    assert idents == [idents[0], idents[0]]
