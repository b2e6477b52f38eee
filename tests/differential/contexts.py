"""Scenarios of the contexts that give code a thread of its own."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.differential.library import Library, Table, async_error_of, error_of

__all__ = ("CONTEXTS",)

CONTEXTS = Table("contexts")


def thread() -> threading.Thread:
    """Return the thread this runs in."""
    return threading.current_thread()


def groups(things: list[Any]) -> list[int]:
    """Return for each thing the index of the first that is the same."""
    return [next(index for index, other in enumerate(things) if other is thing) for thing in things]


# --- ThreadSensitiveContext ------------------------------------------------------


@CONTEXTS.add
def thread_sensitive_context_has_a_thread_of_its_own(library: Library) -> object:
    here = library.sync_to_async(thread)

    async def main() -> list[threading.Thread]:
        threads = [await here()]
        async with library.ThreadSensitiveContext():
            threads += [await here(), await here()]
            async with library.ThreadSensitiveContext():
                threads.append(await here())
            threads += await asyncio.gather(here(), asyncio.create_task(here()))
        return [*threads, await here()]

    return [groups(asyncio.run(main())), groups(library.async_to_sync(main)())]


@CONTEXTS.add
def thread_sensitive_contexts_of_two_tasks_have_two_threads(library: Library) -> object:
    here = library.sync_to_async(thread)
    barrier = threading.Barrier(2)

    async def one() -> list[threading.Thread]:
        async with library.ThreadSensitiveContext():
            await library.sync_to_async(barrier.wait)(30)
            return [await here(), await here()]

    async def main() -> list[threading.Thread]:
        first, second = await asyncio.gather(one(), one())
        return [*first, *second]

    return groups(asyncio.run(main()))


@CONTEXTS.add
def thread_sensitive_context_with_executor_uses_it(library: Library) -> object:
    here = library.sync_to_async(thread)

    async def nested() -> threading.Thread:
        found: threading.Thread = await here()
        return found

    async def main(first: ThreadPoolExecutor, second: ThreadPoolExecutor) -> list[int]:
        threads = [pool.submit(thread).result() for pool in (first, second)]
        async with library.ThreadSensitiveContext(executor=first):
            threads.append(await here())
            async with library.ThreadSensitiveContext(executor=second):
                threads.append(await here())
                threads.append(await library.sync_to_async(library.async_to_sync(nested))())
            async with library.ThreadSensitiveContext():
                threads.append(await here())
            threads.append(await here())
        return groups([*threads, first.submit(thread).result()])

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        return [
            asyncio.run(main(first, second)),
            library.async_to_sync(main)(first, second),
            asyncio.run(library.sync_to_async(library.async_to_sync(main))(first, second)),
        ]


@CONTEXTS.add
def thread_sensitive_context_with_executor_can_be_entered_once(library: Library) -> object:
    async def main(pool: ThreadPoolExecutor) -> list[str]:
        context = library.ThreadSensitiveContext(executor=pool)
        async with context:
            inside = await async_error_of(context.__aenter__())
        return [inside, await async_error_of(context.__aenter__())]

    with ThreadPoolExecutor(1) as pool:
        return asyncio.run(main(pool))


@CONTEXTS.add
def thread_sensitive_context_without_executor_can_be_entered_again(library: Library) -> object:
    here = library.sync_to_async(thread)

    async def main() -> list[bool]:
        context, found = library.ThreadSensitiveContext(), []
        for _ in range(2):
            async with context as value:
                found += [value is context, await here() is await here()]
                async with context:
                    found.append(await here() is await here())
        return found

    return asyncio.run(main())


@CONTEXTS.add
def thread_sensitive_context_passes_errors_on(library: Library) -> object:
    async def main() -> list[object]:
        async def fail() -> None:
            async with library.ThreadSensitiveContext():
                await library.sync_to_async(int)("x")

        error = await async_error_of(fail())
        return [error, library.SyncToAsync.thread_sensitive_context.get(None) is None]

    return [asyncio.run(main()), library.async_to_sync(main)()]


@CONTEXTS.add
def thread_sensitive_context_is_known_inside(library: Library) -> object:
    current = library.SyncToAsync.thread_sensitive_context

    async def main() -> list[bool]:
        async with library.ThreadSensitiveContext() as context:
            found = [
                current.get() is context,
                await library.sync_to_async(current.get)() is context,
            ]
            async with library.ThreadSensitiveContext():
                found.append(current.get() is context)
        return [*found, current.get(None) is None]

    return asyncio.run(main())


async def late_threads(library: Library, **options: Any) -> list[Any]:
    """Return the shared thread, a context's, and those of two calls by a task that outlives the context."""
    here = library.sync_to_async(thread)
    exited = asyncio.Event()

    async def outlive() -> list[Any]:
        await exited.wait()
        return [await here(), await here()]

    found = [await here()]
    async with library.ThreadSensitiveContext(**options):
        found.append(await here())
        task = asyncio.create_task(outlive())
        await asyncio.sleep(0)
    exited.set()
    return [*found, *await task]


@CONTEXTS.add
def task_that_outlives_thread_sensitive_context(library: Library) -> object:
    return groups(asyncio.run(late_threads(library)))


@CONTEXTS.add
def task_that_outlives_thread_sensitive_context_with_executor(library: Library) -> object:
    with ThreadPoolExecutor(1) as pool:
        return error_of(asyncio.run, late_threads(library, executor=pool))


@CONTEXTS.add
def thread_sensitive_context_without_calls_starts_no_thread(library: Library) -> object:
    async def main() -> None:
        async with library.ThreadSensitiveContext():
            pass

    # Threads of other experiments may end meanwhile.
    before = set(threading.enumerate())
    asyncio.run(main())
    return len(set(threading.enumerate()) - before)


# --- AsyncSingleThreadContext ----------------------------------------------------


async def async_thread() -> threading.Thread:
    """Return the thread this runs in."""
    return threading.current_thread()


@CONTEXTS.add
def single_thread_context_runs_all_async_code_in_one_thread(library: Library) -> object:
    here = library.async_to_sync(async_thread)
    with library.AsyncSingleThreadContext():
        threads = [here(), here()]
        with library.AsyncSingleThreadContext():
            threads.append(here())
        threads.append(here())
    return groups(threads)


@CONTEXTS.add
def single_thread_context_runs_sync_code_of_that_code_here(library: Library) -> object:
    here = library.async_to_sync(library.sync_to_async(thread))
    with library.AsyncSingleThreadContext():
        return [here() is thread(), here() is thread()]


@CONTEXTS.add
def single_thread_context_does_not_hold_below_a_running_loop(library: Library) -> object:
    def below() -> threading.Thread:
        with library.AsyncSingleThreadContext():
            found: threading.Thread = library.async_to_sync(async_thread)()
            return found

    async def main() -> bool:
        return await library.sync_to_async(below)() is thread()

    return asyncio.run(main())


@CONTEXTS.add
def single_thread_context_and_a_new_loop_below_its_own(library: Library) -> object:
    below = library.async_to_sync(async_thread, force_new_loop=True)
    with library.AsyncSingleThreadContext():
        return error_of(library.async_to_sync(library.sync_to_async(below)))


@CONTEXTS.add
def single_thread_context_passes_errors_on(library: Library) -> object:
    def fail() -> None:
        with library.AsyncSingleThreadContext() as context:
            assert context is not None
            library.async_to_sync(library.sync_to_async(int))("x")

    return [error_of(fail), library.async_to_sync(library.sync_to_async(int))("1")]
