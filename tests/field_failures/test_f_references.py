"""Section F, C57 and C58: an exception, a result or an argument is kept alive by nothing."""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from tests.field_failures.common import HOMES, Main, Tracked, Work, loop_turns, noop, until
from tests.support import run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
each_sensitivity = pytest.mark.parametrize("thread_sensitive", [True, False])
Home = Callable[[Main[Any]], Any]
References = list["weakref.ref[Tracked]"]


# --- C57, C58, P7: nothing is kept alive ------------------------------------------------------


def fail(references: References) -> None:
    """Raise with a tracked object in the frame."""
    tracked = Tracked()
    references.append(weakref.ref(tracked))
    raise ValueError("expected")


async def afail(references: References) -> None:
    """Raise with a tracked object in the coroutine's frame, after a turn of the loop."""
    tracked = Tracked()
    references.append(weakref.ref(tracked))
    await asyncio.sleep(0)
    raise ValueError("expected")


def answer(argument: Tracked, references: References) -> Tracked:
    """Return a tracked object for a tracked argument."""
    result = Tracked()
    references += [weakref.ref(argument), weakref.ref(result)]
    return result


async def aanswer(argument: Tracked, references: References) -> Tracked:
    """Return a tracked object for a tracked argument, from a coroutine."""
    await asyncio.sleep(0)
    return answer(argument, references)


def wrap(function: Callable[..., Any], pool: ThreadPoolExecutor, thread_sensitive: bool) -> Any:
    """Wrap `function` so that it runs in the home thread, or else in the one thread of `pool`."""
    if thread_sensitive:
        return sync_to_async(function)
    return sync_to_async(function, thread_sensitive=False, executor=pool)


def as_async(function: Callable[[], Any]) -> Main[Any]:
    """Return a coroutine function that awaits what `function` returns."""

    async def awaits() -> Any:
        return await function()

    return awaits


def alive(references: References) -> int:
    """Return how many of the tracked objects still exist."""
    assert references
    return sum(reference() is not None for reference in references)


@pytest.mark.usefixtures("no_gc")
@each_home
@each_sensitivity
def test_c57_failing_sync_function_keeps_no_frame_alive(home: Home, thread_sensitive: bool) -> None:
    """C57: without the garbage collector, the failing frame and its objects go with the error."""
    references: References = []

    async def main() -> int:
        with ThreadPoolExecutor(1) as pool:
            call, empty = (wrap(f, pool, thread_sensitive) for f in (fail, noop))
            for _ in range(5):
                with contextlib.suppress(ValueError):
                    await call(references)
            # The thread has put down a call when it takes the next.
            await empty()
        return alive(references)

    assert home(main) == 0


@pytest.mark.usefixtures("no_gc")
@each_home
@each_sensitivity
def test_c57_sync_function_that_returns_keeps_neither_argument_nor_result_alive(
    home: Home, thread_sensitive: bool
) -> None:
    """P7: an idle thread does not hold what its last call worked with."""
    references: References = []

    async def main() -> int:
        with ThreadPoolExecutor(1) as pool:
            call, empty = (wrap(f, pool, thread_sensitive) for f in (answer, noop))
            assert isinstance(await call(Tracked(), references), Tracked)
            await empty()
        return alive(references)

    assert home(main) == 0


@pytest.mark.usefixtures("no_gc")
@each_home
def test_c58_failing_coroutine_on_the_servers_loop_keeps_no_frame_alive(home: Home) -> None:
    """C58: the same from sync code into a coroutine, and up through both bridges."""
    references: References = []

    def middleware() -> None:
        for _ in range(3):
            with contextlib.suppress(ValueError):
                async_to_sync(afail)(references)
        async_to_sync(afail)(references)

    async def main() -> int:
        with contextlib.suppress(ValueError):
            await sync_to_async(middleware)()
        await sync_to_async(noop)()
        return alive(references)

    assert home(main) == 0


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("force_new_loop", [False, True])
def test_c58_failing_coroutine_of_a_top_level_call_keeps_no_frame_alive(
    force_new_loop: bool,
) -> None:
    """C58: the same for a call that brings its own loop."""
    references: References = []

    async def nested() -> None:
        await sync_to_async(fail)(references)

    def caller() -> int:
        for _ in range(3):
            for function in (lambda: afail(references), nested):
                with contextlib.suppress(ValueError):
                    async_to_sync(as_async(function), force_new_loop=force_new_loop)()
        return alive(references)

    assert run_in_thread(caller) == 0


@pytest.mark.usefixtures("no_gc")
def test_c58_coroutine_that_returns_keeps_neither_argument_nor_result_alive() -> None:
    """P7: the same for calls that succeed, on a loop of their own and on the server's."""
    references: References = []

    def caller() -> int:
        assert isinstance(async_to_sync(aanswer)(Tracked(), references), Tracked)
        return alive(references)

    async def main() -> int:
        await sync_to_async(caller)()
        await sync_to_async(noop)()
        return alive(references)

    assert run_in_thread(caller) == 0
    assert run_in_thread(lambda: asyncio.run(main())) == 0


@pytest.mark.usefixtures("no_gc")
@each_home
def test_p7_cancelled_call_keeps_no_frame_alive(
    home: Home, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7: the frames of a request that was cancelled go when its task does."""
    # The warning of the lost error carries it, and pytest keeps what is logged.
    monkeypatch.setattr(logging.getLogger("django_asyncbridge.bridge.sync"), "disabled", True)
    references: References = []

    def view(argument: Tracked) -> None:
        tracked = Tracked()
        references.extend([weakref.ref(argument), weakref.ref(tracked)])
        work()
        raise ValueError("after the cancellation")

    async def request() -> None:
        tracked = Tracked()
        references.append(weakref.ref(tracked))
        await sync_to_async(view)(Tracked())

    async def main() -> int:
        task = asyncio.create_task(request())
        await until(work.started)
        task.cancel()
        await loop_turns()
        work.release.set()
        await asyncio.wait([task])
        assert task.cancelled()
        del task
        await sync_to_async(noop)()
        return alive(references)

    assert home(main) == 0


@pytest.mark.usefixtures("no_gc")
@each_home
def test_p7_call_that_is_cancelled_below_sync_middleware_keeps_no_frame_alive(home: Home) -> None:
    """P7: the same with a coroutine below, which is where the cancellation went."""
    references: References = []

    async def main() -> int:
        started = asyncio.Event()

        async def view() -> None:
            tracked = Tracked()
            references.append(weakref.ref(tracked))
            started.set()
            await asyncio.sleep(10)

        def middleware() -> None:
            tracked = Tracked()
            references.append(weakref.ref(tracked))
            async_to_sync(view)()

        async def request() -> None:
            tracked = Tracked()
            references.append(weakref.ref(tracked))
            await sync_to_async(middleware)()

        task = asyncio.create_task(request())
        await started.wait()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        del task
        await sync_to_async(noop)()
        return alive(references)

    assert home(main) == 0


@pytest.mark.usefixtures("no_gc")
def test_p7_withdrawn_call_keeps_its_arguments_no_longer_than_the_queue(work: Work) -> None:
    """P7: a queued call that was cancelled is gone when the thread has come past it."""
    references: References = []

    async def main() -> int:
        async with ThreadSensitiveContext():
            first = asyncio.create_task(sync_to_async(work)())
            await until(work.started)
            second = asyncio.create_task(sync_to_async(answer)(Tracked(), references))
            await loop_turns()
            second.cancel()
            await asyncio.wait([second])
            assert second.cancelled()
            del second
            work.release.set()
            await first
            await sync_to_async(noop)()
        return len(references)

    assert run_in_thread(lambda: asyncio.run(main())) == 0
