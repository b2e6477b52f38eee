"""The two contexts: which thread a block gets, when that ends, and what those see who outlive the block."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest

from django_asyncbridge.bridge import _contexts, _state
from django_asyncbridge.bridge.sync import (
    AsyncSingleThreadContext,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)
from tests.bridge import HookedLock, ManualExecutor, wait

current_thread = sync_to_async(threading.current_thread)


async def where() -> threading.Thread:
    return threading.current_thread()


def run_all(*functions: Callable[[], object]) -> None:
    """Call each function in a thread of its own, all at the same time, and wait for them."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)


def new_threads(before: list[threading.Thread]) -> set[threading.Thread]:
    """Return who has come since; threads of an earlier test may still be going."""
    return set(threading.enumerate()).difference(before)


# --- ThreadSensitiveContext: its thread ------------------------------------------


def test_thread_sensitive_context_gives_its_calls_one_thread_that_ends_with_the_block() -> None:
    async def main() -> None:
        async with ThreadSensitiveContext():
            first, second = await current_thread(), await current_thread()
            task = await asyncio.create_task(current_thread())
        assert first is second is task
        assert first.name.startswith("asyncbridge-request-")
        assert not first.is_alive()
        assert await current_thread() is not first

    asyncio.run(main())


def test_thread_sensitive_context_without_a_call_starts_no_thread() -> None:
    async def main() -> None:
        before = threading.enumerate()
        async with ThreadSensitiveContext():
            assert new_threads(before) == set()
        assert new_threads(before) == set()

    asyncio.run(main())


def test_thread_sensitive_context_inside_another_one_changes_nothing() -> None:
    async def main() -> None:
        async with ThreadSensitiveContext():
            outer = await current_thread()
            async with ThreadSensitiveContext():
                assert await current_thread() is outer
            assert await current_thread() is outer

    asyncio.run(main())


def test_thread_sensitive_context_entered_twice_ends_with_the_outermost_block() -> None:
    async def main() -> None:
        context = ThreadSensitiveContext()
        async with context:
            outer = await current_thread()
            async with context:
                assert await current_thread() is outer
            assert await current_thread() is outer
        assert not outer.is_alive()

    asyncio.run(main())


def test_thread_sensitive_context_used_again_has_a_new_thread() -> None:
    async def main() -> None:
        context = ThreadSensitiveContext()
        async with context:
            first = await current_thread()
        async with context:
            second = await current_thread()
        assert first is not second
        assert not second.is_alive()

    asyncio.run(main())


def test_thread_sensitive_context_below_a_waiting_sync_caller_lets_that_come_first() -> None:
    async def main() -> threading.Thread:
        async with ThreadSensitiveContext():
            return await current_thread()

    assert async_to_sync(main)() is threading.current_thread()


# --- ThreadSensitiveContext: leaving ---------------------------------------------


def test_thread_sensitive_context_left_in_another_context_ends_for_all_who_inherited_it() -> None:
    """As test fixtures do that are entered in one task and left in another."""

    async def main() -> None:
        context = ThreadSensitiveContext()
        await context.__aenter__()
        mine = await current_thread()
        await asyncio.get_running_loop().create_task(
            context.__aexit__(None, None, None), context=contextvars.Context()
        )
        assert not mine.is_alive()
        assert await current_thread() is await sync_to_async(threading.current_thread)()
        assert (await current_thread()).name.startswith("asyncbridge-shared-")

    asyncio.run(main())


def test_thread_sensitive_context_left_without_having_been_entered_does_nothing() -> None:
    async def main() -> None:
        async with ThreadSensitiveContext():
            mine = await current_thread()
            await ThreadSensitiveContext().__aexit__(None, None, None)
            assert await current_thread() is mine

    asyncio.run(main())


def test_thread_sensitive_context_waits_for_a_running_call_without_blocking_the_loop() -> None:
    log: list[str] = []
    begun = threading.Event()

    async def help_it() -> None:
        log.append("loop ran")

    def work() -> None:
        begun.set()
        async_to_sync(help_it)()
        log.append("call ended")

    async def main() -> None:
        async with ThreadSensitiveContext():
            task = asyncio.create_task(sync_to_async(work)())
            await asyncio.sleep(0)
            # The loop is not free before the block is being left.
            wait(begun)
        log.append("left")
        await task

    asyncio.run(main())
    assert log == ["loop ran", "call ended", "left"]


def test_thread_sensitive_context_cancelled_while_leaving_goes_and_its_thread_ends_later() -> None:
    begun, release = threading.Event(), threading.Event()
    before = threading.enumerate()

    def work() -> threading.Thread:
        begun.set()
        wait(release)
        return threading.current_thread()

    async def main() -> threading.Thread:
        calls: list[asyncio.Task[threading.Thread]] = []

        async def block() -> None:
            async with ThreadSensitiveContext():
                calls.append(asyncio.create_task(sync_to_async(work)()))
                await asyncio.to_thread(wait, begun)

        task = asyncio.create_task(block())
        while not begun.is_set():
            await asyncio.sleep(0)
        while not bridge_joins():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        (join,) = bridge_joins()
        release.set()
        thread = await calls[0]
        await asyncio.to_thread(join.join, 10)
        return thread

    def bridge_joins() -> list[threading.Thread]:
        return [one for one in new_threads(before) if one.name == "asyncbridge-join"]

    assert not asyncio.run(main()).is_alive()


def test_thread_sensitive_context_left_when_no_thread_can_start_is_left_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """P4: at a limit of threads, a block that has done its work does not fail at its end."""

    def refuse(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    async def main() -> threading.Thread:
        async with ThreadSensitiveContext():
            thread = await current_thread()
            monkeypatch.setattr(threading.Thread, "start", refuse)
        return thread

    thread = asyncio.run(main())
    thread.join(10)
    assert not thread.is_alive()


# --- ThreadSensitiveContext: with an executor ------------------------------------


def test_thread_sensitive_context_with_an_executor_uses_it_inside_another_and_leaves_it_running() -> (
    None
):
    async def main() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
            async with ThreadSensitiveContext():
                outer = await current_thread()
                async with ThreadSensitiveContext(executor=pool):
                    mine = await current_thread()
                assert await current_thread() is outer
            assert mine.name.startswith("mine")
            assert pool.submit(threading.current_thread).result() is mine

    asyncio.run(main())


def test_thread_sensitive_context_with_an_executor_comes_before_a_waiting_sync_caller() -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as pool:
            async with ThreadSensitiveContext(executor=pool):
                assert (await current_thread()).name.startswith("mine")
                assert (await asyncio.create_task(current_thread())).name.startswith("mine")
            assert await current_thread() is caller

    caller = threading.current_thread()
    async_to_sync(main)()


def test_thread_sensitive_context_with_an_executor_cannot_be_entered_again() -> None:
    async def main() -> None:
        context = ThreadSensitiveContext(executor=ManualExecutor())
        async with context:
            with pytest.raises(RuntimeError, match="entered a second time"):
                await context.__aenter__()
        with pytest.raises(RuntimeError, match="make a new one for each block"):
            await context.__aenter__()

    asyncio.run(main())


def test_thread_sensitive_context_with_an_executor_refuses_tasks_that_outlived_it() -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def late() -> None:
            await left.wait()
            with pytest.raises(RuntimeError, match="has outlived it"):
                await current_thread()

        async with ThreadSensitiveContext(executor=ManualExecutor()):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        left.set()
        await task

    asyncio.run(main())


def test_thread_sensitive_context_with_an_executor_left_in_another_context_does_not_change_that() -> (
    None
):
    """P2: what was put aside on entering goes back to where it was found, or nowhere."""

    async def main() -> None:
        outer = _state.waiting_executor()
        assert outer is not None
        context = ThreadSensitiveContext(executor=ManualExecutor())
        await context.__aenter__()
        empty = contextvars.Context()
        leave = context.__aexit__(None, None, None)
        await asyncio.get_running_loop().create_task(leave, context=empty)
        assert empty.run(_state.waiting_executor) is None

    # Nobody takes the block out of the context that it was entered in; so that is not the test's.
    contextvars.copy_context().run(async_to_sync(main))


# --- executor_of -----------------------------------------------------------------


def test_executor_of_an_open_context_asked_by_many_threads_is_one() -> None:
    async def main() -> None:
        async with ThreadSensitiveContext() as context:
            barrier = threading.Barrier(4)
            seen: list[object] = []

            def ask() -> None:
                barrier.wait(10)
                seen.append(_contexts.executor_of(context))

            run_all(*[ask] * 4)
            assert len(seen) == 4
            assert len(set(seen)) == 1

    asyncio.run(main())


def test_executor_of_a_context_that_is_left_in_this_moment_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a thread would start that nobody ends."""

    async def main() -> None:
        async with ThreadSensitiveContext() as context:
            real = _state.registry_lock

            def leave() -> None:
                monkeypatch.setattr(_state, "registry_lock", real)
                context._leave()

            monkeypatch.setattr(_state, "registry_lock", HookedLock(real, leave))
            assert _contexts.executor_of(context) is None
            assert context not in _state.context_to_thread_executor

    asyncio.run(main())


def test_executor_of_a_context_of_asgirefs_is_made_for_it() -> None:
    """Its contexts share our registries, and know nothing of ours that asgiref's class does not have."""

    class Foreign(ThreadSensitiveContext):
        def __init__(self) -> None:
            pass

    context = Foreign()
    executor = _contexts.executor_of(context)
    assert executor is not None
    assert _state.context_to_thread_executor[context] is executor
    executor.shutdown()


# --- AsyncSingleThreadContext ----------------------------------------------------


def test_single_thread_context_inside_another_one_changes_nothing() -> None:
    with AsyncSingleThreadContext():
        outer = async_to_sync(where)()
        with AsyncSingleThreadContext():
            assert async_to_sync(where)() is outer
        assert async_to_sync(where)() is outer
    assert not outer.is_alive()


def test_single_thread_context_entered_twice_ends_with_the_outermost_block() -> None:
    context = AsyncSingleThreadContext()
    with context:
        outer = async_to_sync(where)()
        with context:
            assert async_to_sync(where)() is outer
        assert async_to_sync(where)() is outer
    assert not outer.is_alive()


def test_single_thread_context_used_again_has_a_new_thread() -> None:
    context = AsyncSingleThreadContext()
    with context:
        first = async_to_sync(where)()
    with context:
        second = async_to_sync(where)()
    assert first is not second
    assert not second.is_alive()


def test_single_thread_context_without_a_call_starts_no_thread() -> None:
    before = threading.enumerate()
    with AsyncSingleThreadContext():
        assert new_threads(before) == set()


def test_single_thread_context_left_in_another_context_ends_its_thread() -> None:
    context = AsyncSingleThreadContext()
    # Nobody takes it out of the context that it was entered in; so that one is not the test's.
    entered = contextvars.copy_context()
    entered.run(context.__enter__)
    thread = entered.run(async_to_sync(where))
    context.__exit__(None, None, None)
    assert not thread.is_alive()


def test_single_thread_context_that_has_been_left_gives_those_who_outlive_it_no_thread() -> None:
    """P6: nobody would end it; such a call has a thread of its own, as without a context."""
    with AsyncSingleThreadContext():
        inherited = contextvars.copy_context()
    thread = inherited.run(async_to_sync(where))
    assert not thread.is_alive()


def test_loop_worker_of_a_context_asked_by_many_threads_is_one() -> None:
    barrier = threading.Barrier(4)
    seen: list[object] = []

    def ask() -> None:
        barrier.wait(10)
        seen.append(_contexts.loop_worker_of(context))

    with AsyncSingleThreadContext() as context:
        run_all(*[ask] * 4)
    assert len(seen) == 4
    assert len(set(seen)) == 1
