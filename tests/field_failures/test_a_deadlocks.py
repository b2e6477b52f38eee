"""Section A: what hangs, what is sent to the wrong executor, and false reports of a deadlock."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from tests.field_failures.common import HOMES, Main, on_plain_loop
from tests.support import run_child, run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())
get_ident = sync_to_async(threading.get_ident)
# An object, unlike an ident, is not used again for another thread.
get_thread = sync_to_async(threading.current_thread)


# --- C01: a task that outlives the call that started it ------------------------


async def start_late_task(release: asyncio.Event) -> "asyncio.Task[threading.Thread]":
    """Start, below an `async_to_sync` call that ends first, a task that asks for its home thread."""
    started: list[asyncio.Task[threading.Thread]] = []

    async def late() -> threading.Thread:
        await release.wait()
        return await get_thread()

    async def inner() -> None:
        started.append(asyncio.create_task(late()))

    await sync_to_async(async_to_sync(inner))()
    return started[0]


def test_c01_late_task_on_a_plain_loop_works_in_the_shared_thread() -> None:
    """C01: with no context around it, the next rule is the process's shared thread."""

    async def main() -> tuple[threading.Thread, threading.Thread]:
        release = asyncio.Event()
        task = await start_late_task(release)
        release.set()
        return await task, await get_thread()

    late, shared = on_plain_loop(main)
    assert late == shared


def test_c01_late_task_in_an_open_context_works_in_the_thread_of_the_context() -> None:
    """C01: inside a `ThreadSensitiveContext` that is open, the next rule is the context's thread."""

    async def main() -> tuple[threading.Thread, ...]:
        release = asyncio.Event()
        async with ThreadSensitiveContext():
            task = await start_late_task(release)
            release.set()
            late, home = await task, await get_thread()
        return late, home, await get_thread()

    late, home, shared = on_plain_loop(main)
    assert late == home != shared


def test_c01_late_task_of_an_exited_context_works_in_the_shared_thread() -> None:
    """C01: the context has ended and its thread with it, so the shared thread is next."""

    async def main() -> tuple[threading.Thread, threading.Thread]:
        release = asyncio.Event()
        async with ThreadSensitiveContext():
            task = await start_late_task(release)
        release.set()
        return await task, await get_thread()

    late, shared = on_plain_loop(main)
    assert late == shared


def test_c01_several_late_tasks_at_once_share_one_thread() -> None:
    """C01: late tasks do not report each other as a deadlock."""

    async def main() -> tuple[list[threading.Thread], threading.Thread]:
        release = asyncio.Event()
        tasks = [await start_late_task(release) for _ in range(4)]
        release.set()
        return await asyncio.gather(*tasks), await get_thread()

    late, shared = on_plain_loop(main)
    assert set(late) == {shared}


# --- C05: an executor that was shut down -----------------------------------------


def test_c05_every_call_after_the_executor_was_shut_down_reports_the_executors_error() -> None:
    """C05: the first error does not turn those after it into a false report of a deadlock."""
    run_child(
        """
        import asyncio
        from django_asyncbridge.bridge.sync import SyncToAsync, sync_to_async

        async def main():
            for _ in range(3):
                try:
                    await sync_to_async(print)("must not run")
                except RuntimeError as error:
                    print(error)
                    assert "shutdown" in str(error) and "deadlock" not in str(error), error
                else:
                    raise SystemExit("no error")

        SyncToAsync.single_thread_executor.shutdown()
        asyncio.run(main())
        """
    )


# --- C06: the mark of a running call, inherited by others ------------------------


def by_run_coroutine_threadsafe(main: Main[Any], loop: asyncio.AbstractEventLoop) -> None:
    asyncio.run_coroutine_threadsafe(main(), loop)


def by_call_soon_threadsafe(main: Main[Any], loop: asyncio.AbstractEventLoop) -> None:
    loop.call_soon_threadsafe(lambda: loop.create_task(main()))


schedulings = pytest.mark.parametrize(
    "schedule", [by_run_coroutine_threadsafe, by_call_soon_threadsafe]
)


@schedulings
def test_c06_task_scheduled_from_a_sync_function_works_once_the_function_has_ended(
    schedule: Callable[[Main[Any], asyncio.AbstractEventLoop], None],
) -> None:
    """C06: what a call that has ended held is no reason for a report of a deadlock."""

    async def main() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        outer_ended, answer = asyncio.Event(), loop.create_future()

        async def later() -> None:
            await outer_ended.wait()
            answer.set_result(await asyncio.gather(get_ident(), return_exceptions=True))

        await sync_to_async(schedule)(later, loop)
        outer_ended.set()
        return (await answer)[0], await get_ident()

    late, shared = on_plain_loop(main)
    assert late == shared


def test_c06_task_scheduled_from_a_sync_function_queues_behind_another_call() -> None:
    """C06: a call of somebody else that holds the shared thread ends by itself: wait for it."""

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        outer_ended, answer = asyncio.Event(), loop.create_future()
        order: list[str] = []
        release = threading.Event()

        def hold() -> None:
            assert release.wait(10)
            order.append("other call")

        async def later() -> None:
            await outer_ended.wait()
            loop.call_soon(release.set)
            late = sync_to_async(order.append)("late task")
            answer.set_result(await asyncio.gather(late, return_exceptions=True))

        await sync_to_async(by_run_coroutine_threadsafe)(later, loop)
        other = asyncio.create_task(sync_to_async(hold)())
        await asyncio.sleep(0)
        outer_ended.set()
        assert await answer == [None]
        await other
        return order

    assert on_plain_loop(main) == ["other call", "late task"]


def test_c06_task_that_the_running_sync_function_waits_for_is_reported() -> None:
    """C06: while the sync function holds the shared thread and waits, the call can never run."""
    child = run_child(
        """
        import asyncio
        from django_asyncbridge.bridge.sync import sync_to_async

        async def later():
            await sync_to_async(print)("must not run")

        async def main():
            loop = asyncio.get_running_loop()
            def view():
                try:
                    asyncio.run_coroutine_threadsafe(later(), loop).result(5)
                except RuntimeError as error:
                    print("reported:", error)
            await sync_to_async(view)()

        asyncio.run(main())
        """
    )
    assert "reported:" in child.stdout
    assert "deadlock" in child.stdout


# --- C07 to C11: what works today ------------------------------------------------


def test_c07_task_started_below_a_nested_call_uses_the_thread_while_the_call_returns() -> None:
    """C07: a started task hands over its sync function at the moment its home stops serving."""
    run_child(
        """
        import asyncio
        from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async

        done = []

        async def start():
            return asyncio.create_task(sync_to_async(done.append)(1))

        async def root():
            for turns in range(300):
                task = await sync_to_async(async_to_sync(start))()
                for _ in range(turns % 4):
                    await asyncio.sleep(0)
                await task

        async_to_sync(root)()
        assert len(done) == 300
        """
    )


@each_home
def test_c07_nested_call_that_waits_for_its_task_many_times_never_hangs(
    home: Callable[[Main[int]], int],
) -> None:
    """C07: the same, with the task waited for inside the nested call."""
    done: list[int] = []

    async def start() -> None:
        await asyncio.create_task(sync_to_async(done.append)(threading.get_ident()))

    async def main() -> int:
        for _ in range(300):
            await sync_to_async(async_to_sync(start))()
        return len(done)

    assert home(main) == 300


def test_c08_late_task_below_a_sync_root_works_in_the_thread_of_the_root() -> None:
    """C08: with a sync caller at the root, a late task's home is that caller's thread."""

    async def main() -> int:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        idents: list[int] = []

        async def late() -> None:
            idents.append(await get_ident())
            done.set()

        async def inner() -> None:
            loop.call_later(0.01, lambda: tasks.append(loop.create_task(late())))

        tasks: list[asyncio.Task[None]] = []
        await sync_to_async(async_to_sync(inner))()
        await done.wait()
        return idents[0]

    def root() -> bool:
        return async_to_sync(main)() == threading.get_ident()

    assert run_in_thread(root)


@each_home
def test_c09_two_calls_in_tasks_below_nested_calls_both_run_in_the_home_thread(
    home: Callable[[Main[bool]], bool],
) -> None:
    """C09: the second call of a task, and a second task, do not wait for the first for ever."""

    async def task() -> list[int]:
        return [await get_ident(), await get_ident()]

    async def inner() -> set[int]:
        both = await asyncio.gather(asyncio.create_task(task()), asyncio.create_task(task()))
        return {ident for idents in both for ident in idents}

    async def main() -> bool:
        return await sync_to_async(lambda: async_to_sync(inner)() == {threading.get_ident()})()

    assert home(main)


@each_home
def test_c10_wait_for_in_an_async_view_below_sync_middleware_ends_in_the_home_thread(
    home: Callable[[Main[bool]], bool],
) -> None:
    """C10: `wait_for` makes a task of its own, whose call still finds the waiting sync caller."""

    async def view() -> int:
        return await asyncio.wait_for(get_ident(), 10)

    async def main() -> bool:
        return await sync_to_async(lambda: async_to_sync(view)() == threading.get_ident())()

    assert home(main)


@pytest.mark.parametrize("seed", [1, 10_001])
def test_c11_random_trees_with_cancellations_neither_hang_nor_leak(seed: int) -> None:
    """C11: 8 contexts at once, 5 deep, cancelled at random: no hang, no thread left, right threads."""
    run_child(
        """
        import sys
        from tests.field_failures.common import random_trees
        random_trees(int(sys.argv[1]), 40)
        """,
        str(seed),
        timeout_seconds=30,
    )


def test_p6_random_requests_end_after_their_sync_functions() -> None:
    """P6: however a request ends, no sync function that it started is still running."""
    run_child(
        """
        from tests.field_failures.common import random_trees
        assert random_trees(1, 60) == 0
        """,
        timeout_seconds=30,
    )
