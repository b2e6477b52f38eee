"""Scenarios of where single calls run, of ``context=``, and of whoever reaches into the classes."""

import asyncio
import contextvars
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.differential.library import Library, Table, async_error_of, error_of

__all__ = ("THREADS",)

THREADS = Table("threads-of-calls")


def thread() -> threading.Thread:
    """Return the thread this runs in."""
    return threading.current_thread()


def arguments(*args: object, **kwargs: object) -> list[object]:
    """Return what was given."""
    return [args, kwargs]


async def async_arguments(*args: object, **kwargs: object) -> list[object]:
    """Return what was given."""
    return [args, kwargs]


@THREADS.add
def sync_to_async_from_all_loops_shares_one_thread(library: Library) -> object:
    ours = asyncio.run(library.sync_to_async(thread)())
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(asyncio.run, library.sync_to_async(thread)()).result()
    return [ours is theirs, ours is thread()]


@THREADS.add
def sync_to_async_calls_of_one_thread_run_in_order(library: Library) -> object:
    async def main() -> list[int]:
        order: list[int] = []
        await asyncio.gather(*(library.sync_to_async(order.append)(n) for n in range(20)))
        return order

    return [asyncio.run(main()), library.async_to_sync(main)()]


@THREADS.add
def thread_insensitive_calls_run_side_by_side(library: Library) -> object:
    barrier = threading.Barrier(3)

    async def main() -> list[bool]:
        wait = library.sync_to_async(barrier.wait, thread_sensitive=False)
        return sorted(await asyncio.gather(wait(30), wait(30), wait(30)))

    return [asyncio.run(main()), library.async_to_sync(main)()]


@THREADS.add
def own_executor_is_used_and_left_open(library: Library) -> object:
    async def main(pool: ThreadPoolExecutor) -> bool:
        wrapped = library.sync_to_async(thread, thread_sensitive=False, executor=pool)
        return await wrapped() is pool.submit(thread).result()

    with ThreadPoolExecutor(1) as pool:
        return [asyncio.run(main(pool)), library.async_to_sync(main)(pool)]


@THREADS.add
def async_to_sync_from_pool_thread_leaves_nothing_to_it(library: Library) -> object:
    wrapped = library.async_to_sync(library.sync_to_async(thread))
    with ThreadPoolExecutor(1) as pool:
        home = pool.submit(thread).result()
        return [pool.submit(wrapped).result() is home for _ in range(3)]


@THREADS.add
def nested_loop_in_shared_thread_would_deadlock(library: Library) -> object:
    def run_another_loop() -> str:
        return asyncio.run(async_error_of(library.sync_to_async(thread)()))

    return asyncio.run(library.sync_to_async(run_another_loop)())


@THREADS.add
def nested_loop_in_waiting_thread_would_deadlock(library: Library) -> object:
    def run_another_loop() -> str:
        return asyncio.run(async_error_of(library.sync_to_async(thread)()))

    return library.async_to_sync(library.sync_to_async(run_another_loop))()


@THREADS.add
def context_argument_keeps_variables_apart(library: Library) -> object:
    variable = contextvars.ContextVar("variable", default="unset")

    def swap(value: str) -> str:
        before = variable.get()
        variable.set(value)
        return before

    async def main() -> list[str]:
        variable.set("caller")
        context = contextvars.copy_context()
        wrapped = library.sync_to_async(swap, context=context)
        variable.set("later")
        return [await wrapped("one"), await wrapped("two"), variable.get(), context[variable]]

    free = functools.partial(library.sync_to_async, thread_sensitive=False)

    async def aside() -> list[str]:
        context = contextvars.Context()
        return [await free(swap, context=context)("one"), variable.get(), context[variable]]

    return [asyncio.run(main()), library.async_to_sync(main)(), asyncio.run(aside())]


@THREADS.add
def context_argument_reaches_nested_async_code(library: Library) -> object:
    variable = contextvars.ContextVar("variable", default="unset")

    async def swap(value: str) -> str:
        before = variable.get()
        variable.set(value)
        return before

    async def main() -> list[str]:
        variable.set("caller")
        context = contextvars.Context()
        wrapped = library.sync_to_async(library.async_to_sync(swap), context=context)
        return [await wrapped("one"), await wrapped("two"), variable.get(), context[variable]]

    return [asyncio.run(main()), library.async_to_sync(main)()]


# --- Whoever reaches in --------------------------------------------------------


@THREADS.add
def overridden_thread_handler_wraps_the_call(library: Library) -> object:
    notes: list[object] = []

    class Noting(library.SyncToAsync):  # type: ignore[name-defined,misc]  # the class is a value here
        def thread_handler(
            self, loop: Any, exc_info: Any, task_context: Any, func: Any, *args: Any, **kwargs: Any
        ) -> Any:
            notes.append([isinstance(loop, asyncio.AbstractEventLoop), loop.is_running()])
            notes.append([part is None for part in exc_info])
            try:
                return super().thread_handler(loop, exc_info, task_context, func, *args, **kwargs)
            finally:
                notes.append("after")

    result = asyncio.run(Noting(arguments)(1, a=2))
    error = asyncio.run(async_error_of(Noting(int)("x")))
    return [result, error, notes]


@THREADS.add
def overridden_main_wrap_wraps_the_call(library: Library) -> object:
    notes: list[object] = []

    class Noting(library.AsyncToSync):  # type: ignore[name-defined,misc]  # the class is a value here
        async def main_wrap(self, *args: Any, **kwargs: Any) -> None:
            notes.append("before")
            await super().main_wrap(*args, **kwargs)
            notes.append("after")

    nested = library.sync_to_async(Noting(async_arguments))
    return [Noting(async_arguments)(1, a=2), asyncio.run(nested(3)), notes]


@THREADS.add
def patched_call_sees_every_call(library: Library) -> object:
    notes: list[str] = []
    original = library.SyncToAsync.__call__

    async def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        notes.append(self.func.__name__)
        return await original(self, *args, **kwargs)

    library.SyncToAsync.__call__ = patched
    try:
        result = asyncio.run(library.sync_to_async(arguments)(1))
    finally:
        library.SyncToAsync.__call__ = original
    return [result, notes]


@THREADS.add
def registered_executor_of_a_context_is_used(library: Library) -> object:
    async def main(pool: ThreadPoolExecutor) -> bool:
        async with library.ThreadSensitiveContext() as context:
            library.SyncToAsync.context_to_thread_executor[context] = pool
            return await library.sync_to_async(thread)() is pool.submit(thread).result()

    pool = ThreadPoolExecutor(1)
    return [asyncio.run(main(pool)), error_of(pool.submit, thread)]


@THREADS.add
def shared_executor_is_that_of_the_attribute(library: Library) -> object:
    attribute = library.SyncToAsync.single_thread_executor.submit(thread).result()
    return asyncio.run(library.sync_to_async(thread)()) is attribute
