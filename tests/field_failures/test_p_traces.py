"""Promise P2 and row C03: after any end of a call, its thread and its context are as before."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import (
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)
from tests.field_failures.common import (
    HOMES,
    Main,
    Work,
    below_async_to_sync,
    loop_turns,
    noop,
    on_plain_loop,
    traces,
    until,
)
from tests.support import run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())


async def end_by_return(call: "SyncToAsync[[], str]", work: Work) -> None:
    work.release.set()
    assert await call() == "result"


async def end_by_error(call: "SyncToAsync[[], str]", work: Work) -> None:
    work.error = ValueError("expected")
    work.release.set()
    with pytest.raises(ValueError, match="expected"):
        await call()


async def end_by_cancellation(call: "SyncToAsync[[], str]", work: Work) -> None:
    task = asyncio.current_task()
    assert task is not None

    async def cancel() -> None:
        await until(work.started)
        task.cancel()
        await loop_turns()
        work.release.set()

    canceller = asyncio.create_task(cancel())
    with pytest.raises(asyncio.CancelledError):
        await call()
    task.uncancel()
    await canceller


each_end = pytest.mark.parametrize("end", [end_by_return, end_by_error, end_by_cancellation])
End = Callable[["SyncToAsync[[], str]", Work], Coroutine[Any, Any, None]]


@each_end
def test_c03_pool_thread_keeps_no_loop_after_any_end_of_a_call(end: End, work: Work) -> None:
    """C03, P2: the thread of a pool is as it was before, however the call ended."""
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(traces).result(10)

        async def main() -> None:
            await end(SyncToAsync(work, thread_sensitive=False, executor=pool), work)

        on_plain_loop(main)
        assert pool.submit(traces).result(10) == before


@each_end
def test_c03_executor_of_a_context_keeps_no_loop_after_any_end_of_a_call(
    end: End, work: Work
) -> None:
    """C03, P2: the same for the executor that a `ThreadSensitiveContext` was given."""
    with ThreadPoolExecutor(1) as pool:
        before = pool.submit(traces).result(10)

        async def main() -> None:
            async with ThreadSensitiveContext(executor=pool):
                await end(SyncToAsync(work), work)

        on_plain_loop(main)
        assert pool.submit(traces).result(10) == before


@each_end
def test_c03_sync_caller_keeps_no_trace_of_a_call_that_it_served(end: End, work: Work) -> None:
    """P2: the thread that waited in `async_to_sync` is as it was before, and so is its context."""

    async def main() -> None:
        await end(SyncToAsync(work), work)

    def root() -> tuple[object, object]:
        before = traces()
        async_to_sync(main)()
        return before, traces()

    before, after = run_in_thread(root)
    assert before == after


@each_end
@each_home
def test_p2_task_keeps_no_trace_after_any_end_of_a_call(
    home: Callable[[Main[None]], None], end: End, work: Work
) -> None:
    """P2: the calling task and the loop's thread are as before, so the next call finds its home."""

    async def main() -> None:
        home_thread = await sync_to_async(threading.get_ident)()
        before = traces()
        await end(SyncToAsync(work), work)
        assert traces() == before
        assert await sync_to_async(threading.get_ident)() == home_thread

    home(main)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, asyncio.CancelledError])
def test_p2_sync_caller_keeps_no_trace_after_any_end_of_async_to_sync(
    error: type[BaseException] | None,
) -> None:
    """P2: whatever comes out of the coroutine, the thread and its context are as before."""

    async def main() -> None:
        await sync_to_async(noop)()
        if error is not None:
            raise error

    def root() -> tuple[object, object]:
        before = traces()
        with pytest.raises(error) if error else contextlib.nullcontext():
            async_to_sync(main)()
        return before, traces()

    before, after = run_in_thread(root)
    assert before == after


def test_p2_shared_thread_keeps_no_trace_of_a_nested_call() -> None:
    """P2, C03: during a call the thread knows its loop, also after nested calls; afterwards none."""

    def loop_of_thread() -> object:
        return getattr(SyncToAsync.threadlocal, "main_event_loop", None)

    async def nested() -> None:
        await sync_to_async(noop)()

    async def main() -> list[bool]:
        def view() -> list[object]:
            before = loop_of_thread()
            async_to_sync(nested)()
            return [before, loop_of_thread()]

        seen = await sync_to_async(view)()
        return [loop is asyncio.get_running_loop() for loop in seen]

    assert on_plain_loop(main) == [True, True]
    assert SyncToAsync.single_thread_executor.submit(loop_of_thread).result(10) is None
    assert below_async_to_sync(main) == [True, True]
