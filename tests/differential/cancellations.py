"""Scenarios of the cancellation of single calls."""

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Any

from tests.differential.library import Library, Table, async_error_of, error_of
from tests.differential.work import LOOK_SECONDS, Work, wait_for_event

__all__ = ("CANCELLED",)

CANCELLED = Table("cancellations")


@CANCELLED.add
def cancelled_call_of_running_function(library: Library) -> object:
    work = Work()

    async def main() -> list[object]:
        task = await work.start(library.sync_to_async(work)())
        return [await work.cancel(task), work.notes]

    return asyncio.run(main())


@CANCELLED.add
def cancelled_call_of_running_function_below_async_to_sync(library: Library) -> object:
    work = Work()

    async def inner() -> None:
        await library.sync_to_async(work)()

    async def main() -> list[object]:
        task = await work.start(library.sync_to_async(library.async_to_sync(inner))())
        return [await work.cancel(task), work.notes]

    return asyncio.run(main())


@CANCELLED.add
def cancelled_call_whose_function_raises_later(library: Library) -> object:
    work = Work()

    def fail() -> None:
        work()
        raise LookupError

    async def main() -> str:
        task = await work.start(library.sync_to_async(fail)())
        return await work.cancel(task)

    return asyncio.run(main())


@CANCELLED.add
def cancelled_call_that_still_waits_for_its_thread_never_runs(library: Library) -> object:
    work = Work()

    async def main() -> list[object]:
        first = await work.start(library.sync_to_async(work)())
        second = asyncio.create_task(library.sync_to_async(work.notes.append)("never"))
        await asyncio.sleep(0)
        second.cancel()
        error = await async_error_of(second)
        work.released.set()
        result = await first
        await library.sync_to_async(work.notes.append)("last")
        return [error, result, work.notes]

    return asyncio.run(main())


@CANCELLED.add
def cancelled_call_whose_function_calls_async_code_afterwards(library: Library) -> object:
    work = Work()
    called = threading.Event()

    async def inner() -> None:  # pragma: no cover  # only asgiref begins it
        try:
            await asyncio.sleep(0)
        finally:
            work.notes.append(f"inner: {type(sys.exception()).__name__}")

    def function() -> None:
        work()
        try:
            work.notes.append(error_of(library.async_to_sync(inner)))
        finally:
            called.set()

    async def main() -> list[object]:
        task = await work.start(library.sync_to_async(function)())
        task.cancel()
        await asyncio.sleep(0)
        work.released.set()
        error = await async_error_of(task)
        await wait_for_event(called)
        return [error, work.notes]

    return asyncio.run(main())


@CANCELLED.add
def call_that_is_cancelled_twice(library: Library) -> object:
    work = Work()
    tasks: list[asyncio.Task[Any]] = []

    async def inner() -> None:
        work.started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            tasks[0].cancel()
            await async_error_of(asyncio.sleep(0))
            work.notes.append("cleaned up")

    async def main() -> list[object]:
        tasks.append(await work.start(library.sync_to_async(library.async_to_sync(inner))()))
        tasks[0].cancel()
        return [await async_error_of(tasks[0]), work.notes]

    return asyncio.run(main())


@CANCELLED.add
def cancellation_on_its_way_into_a_new_loop(library: Library) -> object:
    work = Work()
    wakers: list[Callable[[], object]] = []

    async def inner() -> None:
        loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        wakers.append(lambda: loop.call_soon_threadsafe(future.cancel))
        work.started.set()
        await future

    async def main() -> str:
        wrapped = library.async_to_sync(inner, force_new_loop=True)
        task = await work.start(library.sync_to_async(wrapped)())
        task.cancel()
        return await async_error_of(task)

    try:
        return asyncio.run(main())
    finally:
        # Where the cancellation has not arrived, the shared thread would be held for ever.
        error_of(wakers[0])


@CANCELLED.add
def calls_while_a_cancellation_is_handled(library: Library) -> object:
    notes: list[object] = []

    async def handler() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            notes.append(await library.sync_to_async(int)("1"))
            raise
        finally:
            notes.append(await library.sync_to_async(int)("2"))

    async def main() -> str:
        task = asyncio.create_task(handler())
        await asyncio.sleep(0)
        task.cancel()
        return await async_error_of(task)

    return [asyncio.run(main()), library.async_to_sync(main)(), notes]


@CANCELLED.add
def time_limit_around_a_call(library: Library) -> object:
    work = Work()

    async def limited() -> list[object]:
        asyncio.get_running_loop().call_later(0.02, work.released.set)
        try:
            async with asyncio.timeout(0.01):
                await library.sync_to_async(work)()
        except TimeoutError:
            work.notes.append("limit")
        task = asyncio.current_task()
        assert task is not None
        return [task.cancelling(), await library.sync_to_async(int)("1"), sorted(work.notes)]

    return asyncio.run(limited())


@CANCELLED.add
def time_limit_around_async_code_below_sync_code(library: Library) -> object:
    async def inner() -> None:
        await asyncio.wait_for(asyncio.get_running_loop().create_future(), 0.01)

    async def main() -> list[object]:
        error = await async_error_of(library.sync_to_async(library.async_to_sync(inner))())
        task = asyncio.current_task()
        assert task is not None
        return [error, task.cancelling()]

    return asyncio.run(main())


@CANCELLED.add
def task_group_with_a_failing_sibling(library: Library) -> object:
    work = Work()

    async def fail() -> None:
        await wait_for_event(work.started)
        asyncio.get_running_loop().call_later(LOOK_SECONDS, work.released.set)
        raise LookupError

    async def main() -> list[str]:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(library.sync_to_async(work)())
                group.create_task(fail())
        except* LookupError:
            work.notes.append("group ended")
        await wait_for_event(work.ended)
        return work.notes

    return asyncio.run(main())
