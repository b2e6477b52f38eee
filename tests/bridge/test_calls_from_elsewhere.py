"""Calls that come home from another event loop or thread, while the thread that is home runs an event loop of its own.

Context variables go to other threads with `call_soon_threadsafe` and `to_thread`, and with them who waits. Such a call has to make
the waiting thread leave its loop; it does not look anywhere else meanwhile.
"""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from django_asyncbridge.bridge._hosted_loop import HostedLoop
from django_asyncbridge.bridge._own_loop import OwnLoop
from django_asyncbridge.bridge.current_thread_executor import CurrentThreadExecutor
from django_asyncbridge.bridge.sync import AsyncToSync, sync_to_async
from django_asyncbridge.testing import home_thread
from tests.support import run_in_thread

Main = Callable[[], Coroutine[Any, Any, int]]
Factory = Callable[[], asyncio.AbstractEventLoop]
get_ident = sync_to_async(threading.get_ident)


@pytest.fixture(scope="module")
def other_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Give a loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def ask() -> int:
    return await get_ident()


def ask_on_a_new_loop() -> int:
    return asyncio.run(ask())


async def by_another_loop(other: asyncio.AbstractEventLoop) -> int:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), other))


async def by_a_loop_in_a_thread(other: asyncio.AbstractEventLoop) -> int:
    return await asyncio.to_thread(ask_on_a_new_loop)


async def by_a_loop_in_a_worker(other: asyncio.AbstractEventLoop) -> int:
    return await sync_to_async(ask_on_a_new_loop, thread_sensitive=False)()


def own(factory: Factory, main: Main) -> int:
    return AsyncToSync(main, loop_factory=factory)()


def hosted(factory: Factory, main: Main) -> int:
    with home_thread(), asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


each_factory = pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
each_home = pytest.mark.parametrize("home", [own, hosted])


@each_factory
@each_home
@pytest.mark.parametrize("way", [by_another_loop, by_a_loop_in_a_thread, by_a_loop_in_a_worker])
def test_call_from_elsewhere_comes_home(
    home: Any, way: Any, factory: Factory, other_loop: asyncio.AbstractEventLoop
) -> None:
    async def main() -> int:
        return await way(other_loop)  # type: ignore[no-any-return]  # all do

    def calls() -> None:
        for _ in range(3):
            assert home(factory, main) == threading.get_ident()

    run_in_thread(calls)


@each_factory
@each_home
def test_calls_from_elsewhere_at_once_all_come_home(
    home: Any, factory: Factory, other_loop: asyncio.AbstractEventLoop
) -> None:
    async def main() -> int:
        ways = [by_another_loop, by_a_loop_in_a_thread] * 5
        (ident,) = {*await asyncio.gather(*(way(other_loop) for way in ways), ask())}
        return ident

    def calls() -> None:
        for _ in range(10):
            assert home(factory, main) == threading.get_ident()

    run_in_thread(calls)


@each_home
def test_call_from_elsewhere_that_comes_before_the_loop_runs_is_run_first(
    home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = CurrentThreadExecutor._begin_hosting
    log: list[str] = []
    done = threading.Event()

    def note() -> None:
        log.append("from elsewhere")
        done.set()

    def begin_later(executor: CurrentThreadExecutor, host: Any) -> bool:
        monkeypatch.undo()
        poster = threading.Thread(target=lambda: executor.submit(note))
        poster.start()
        poster.join()
        return begin(executor, host)

    async def main() -> int:
        assert await asyncio.to_thread(done.wait, 10)
        log.append("coroutine")
        return threading.get_ident()

    monkeypatch.setattr(CurrentThreadExecutor, "_begin_hosting", begin_later)
    run_in_thread(lambda: home(asyncio.new_event_loop, main))
    assert log == ["from elsewhere", "coroutine"]


@pytest.mark.parametrize("kind", [OwnLoop, HostedLoop])
def test_call_from_elsewhere_that_comes_when_the_loop_has_ended_moves_nothing(kind: Any) -> None:
    loops = [asyncio.new_event_loop()]
    host = OwnLoop(lambda: loops[0]) if kind is OwnLoop else HostedLoop(loops[0])
    host._move_for_others()
    assert not host._moving
    loops[0].close()
    host.move_soon()
    loops.clear()
    gc.collect()
    host.move_soon()


@each_home
def test_call_from_elsewhere_that_needs_a_thread_which_cannot_start_is_refused(
    home: Any, monkeypatch: pytest.MonkeyPatch, other_loop: asyncio.AbstractEventLoop
) -> None:
    def no_move(host: object) -> None:
        raise RuntimeError("no thread could be started")

    async def main() -> int:
        with pytest.raises(RuntimeError, match="no thread could be started"):
            await by_another_loop(other_loop)
        return 0

    for kind in (OwnLoop, HostedLoop):
        monkeypatch.setattr(kind, "move", no_move)
    assert run_in_thread(lambda: home(asyncio.new_event_loop, main)) == 0
