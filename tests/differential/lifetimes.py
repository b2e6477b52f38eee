"""Scenarios of what outlives its call, and of what calls leave behind in threads and contexts."""

import asyncio
import contextvars
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

from tests.differential.library import Library, Table, async_error_of, error_of
from tests.differential.work import LIMIT_SECONDS, Work

__all__ = ("LIFETIMES",)

LIFETIMES = Table("lifetimes")


@LIFETIMES.add
def task_left_behind_by_async_to_sync_is_cancelled(library: Library) -> object:
    notes: list[str] = []

    kept: list[asyncio.Future[None]] = []

    async def stay() -> None:
        # Kept, or the collector may come upon the task: asyncio itself refers to it weakly.
        kept.append(asyncio.get_running_loop().create_future())
        try:
            await kept[0]
        finally:
            notes.append(f"task: {type(sys.exception()).__name__}")

    async def main() -> str:
        notes.append(str(type(asyncio.create_task(stay())).__name__))
        await asyncio.sleep(0)
        return "result"

    notes.append(library.async_to_sync(main)())
    return notes


@LIFETIMES.add
def task_left_behind_by_failing_async_to_sync_is_cancelled(library: Library) -> object:
    notes: list[str] = []

    kept: list[asyncio.Future[None]] = []

    async def stay() -> None:
        # Kept, or the collector may come upon the task: asyncio itself refers to it weakly.
        kept.append(asyncio.get_running_loop().create_future())
        try:
            await kept[0]
        finally:
            notes.append(f"task: {type(sys.exception()).__name__}")

    async def main() -> None:
        task = asyncio.create_task(stay())
        await asyncio.sleep(0)
        notes.append(str(task.done()))
        raise LookupError

    notes.append(error_of(library.async_to_sync(main)))
    return notes


@LIFETIMES.add
def async_generator_left_behind_by_async_to_sync_is_closed(library: Library) -> object:
    notes: list[str] = []
    kept: list[AsyncIterator[int]] = []

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            notes.append("generator closed")

    async def main() -> None:
        kept.append(generate())
        notes.append(str(await anext(kept[0])))

    library.async_to_sync(main)()
    notes.append("returned")
    return notes


@LIFETIMES.add
def task_on_the_outer_loop_that_outlives_async_to_sync(library: Library) -> object:
    tasks: list[asyncio.Task[str]] = []
    returned = asyncio.Event()

    async def background() -> str:
        await returned.wait()
        return await async_error_of(library.sync_to_async(threading.current_thread)())

    async def inner() -> None:
        tasks.append(asyncio.create_task(background()))

    async def main() -> str:
        await library.sync_to_async(library.async_to_sync(inner))()
        returned.set()
        return await tasks[0]

    return asyncio.run(main())


@LIFETIMES.add
def coroutine_scheduled_on_the_outer_loop_by_sync_code(library: Library) -> object:
    async def later(returned: asyncio.Event) -> str:
        await returned.wait()
        return await async_error_of(library.sync_to_async(threading.current_thread)())

    async def main() -> str:
        loop, returned = asyncio.get_running_loop(), asyncio.Event()
        schedule = library.sync_to_async(asyncio.run_coroutine_threadsafe)
        scheduled: asyncio.Future[str] = asyncio.wrap_future(await schedule(later(returned), loop))
        returned.set()
        return await scheduled

    return asyncio.run(main())


@LIFETIMES.add
def async_to_sync_for_a_loop_that_has_stopped(library: Library) -> object:
    work = Work()
    results: Future[str] = Future()

    async def inner() -> str:
        return "inner"

    def function() -> None:
        work()
        results.set_result(library.async_to_sync(inner)())

    async def main() -> asyncio.Task[None]:
        return await work.start(library.sync_to_async(function)())

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(main())
    work.released.set()
    result = results.result(LIMIT_SECONDS)
    loop.run_until_complete(task)
    loop.close()
    return result


@LIFETIMES.add
def async_to_sync_in_pool_thread_that_once_served_a_stopped_loop(library: Library) -> object:
    async def inner() -> str:
        return "inner"

    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as pool:
        wrapped = library.sync_to_async(int, thread_sensitive=False, executor=pool)
        loop.run_until_complete(wrapped())
        result = pool.submit(library.async_to_sync(inner)).result(LIMIT_SECONDS)
    loop.close()
    return result


@LIFETIMES.add
def refusal_by_the_shared_executor_is_told_each_time(library: Library) -> object:
    class Refusing(Executor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            raise LookupError

    async def main() -> list[str]:
        return [await async_error_of(library.sync_to_async(int)()) for _ in range(2)]

    shared = library.SyncToAsync.single_thread_executor
    library.SyncToAsync.single_thread_executor = Refusing()
    try:
        return asyncio.run(main())
    finally:
        library.SyncToAsync.single_thread_executor = shared


# --- Context variables -----------------------------------------------------


@LIFETIMES.add
def token_of_one_call_is_used_in_the_next(library: Library) -> object:
    variable = contextvars.ContextVar("variable", default="unset")

    async def main() -> list[str]:
        token = await library.sync_to_async(variable.set)("set")
        seen = variable.get()
        return [
            seen,
            await async_error_of(library.sync_to_async(variable.reset)(token)),
            variable.get(),
        ]

    return [asyncio.run(main()), library.async_to_sync(main)()]


@LIFETIMES.add
def variables_set_before_a_cancellation_are_kept(library: Library) -> object:
    work = Work()
    variable = contextvars.ContextVar("variable", default="unset")

    async def inner() -> None:
        variable.set("set")
        work.started.set()
        await asyncio.get_running_loop().create_future()

    async def main() -> list[str]:
        async def caller() -> list[str]:
            error = await async_error_of(library.sync_to_async(library.async_to_sync(inner))())
            return [error, variable.get()]

        task: asyncio.Task[list[str]] = await work.start(caller())
        task.cancel()
        return await task

    return asyncio.run(main())


@LIFETIMES.add
def nested_calls_from_eager_tasks(library: Library) -> object:
    factory: Callable[..., Any] | None = getattr(asyncio, "eager_task_factory", None)

    async def inner() -> bool:
        home = await library.sync_to_async(threading.current_thread)()
        again = await asyncio.create_task(library.sync_to_async(threading.current_thread)())
        return home is again

    async def main() -> list[bool]:
        asyncio.get_running_loop().set_task_factory(factory)
        nested = library.sync_to_async(library.async_to_sync(inner))
        return [*await asyncio.gather(nested(), asyncio.create_task(nested()), inner())]

    return [asyncio.run(main()), library.async_to_sync(main)()]
