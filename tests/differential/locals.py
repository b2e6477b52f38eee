"""Scenarios of `Local` and of `CurrentThreadExecutor`."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future

from tests.differential.library import Library, Table, error_of

__all__ = ("LOCALS",)

LOCALS = Table("locals")


def thread() -> threading.Thread:
    """Return the thread this runs in."""
    return threading.current_thread()


@LOCALS.add
def local_attributes(library: Library) -> object:
    found: list[object] = []
    for critical in (False, True):
        local = library.Local(thread_critical=critical)
        local.name = 1
        found += [local.name, hasattr(local, "other"), error_of(getattr, local, "other")]
        del local.name
        found += [hasattr(local, "name"), error_of(delattr, local, "name")]
        found += [isinstance(local, library.Local), error_of(setattr, local, "__dict__", 1)]
    return found


@LOCALS.add
def local_cannot_be_subclassed(library: Library) -> object:
    def derive() -> object:
        return type("Derived", (library.Local,), {})()

    return error_of(derive)


@LOCALS.add
def local_of_sibling_tasks_is_apart(library: Library) -> object:
    def of(critical: bool) -> object:
        local = library.Local(critical)

        async def change(value: int) -> list[object]:
            before = getattr(local, "value", None)
            local.value = value
            await asyncio.sleep(0)
            seen = local.value
            if value == 1:
                del local.value
            await asyncio.sleep(0)
            return [before, seen, getattr(local, "value", None)]

        async def main() -> list[object]:
            local.value = 0
            tasks = await asyncio.gather(*(change(value) for value in range(3)))
            return [*tasks, await change(5), local.value]

        return asyncio.run(main())

    return [of(False), of(True)]


def in_thread(function: Callable[[], object]) -> object:
    """Call in a new thread whose context is empty."""
    found: list[object] = []
    worker = threading.Thread(
        target=contextvars.Context().run, args=(lambda: found.append(function()),)
    )
    worker.start()
    worker.join()
    return found[0]


@LOCALS.add
def local_of_another_thread_is_apart(library: Library) -> object:
    def of(critical: bool) -> object:
        local = library.Local(critical)
        local.value = 1
        there = in_thread(lambda: getattr(local, "value", None))
        in_thread(lambda: setattr(local, "value", 2))
        return [there, local.value]

    return [of(False), of(True)]


@LOCALS.add
def local_in_copied_context_of_another_thread(library: Library) -> object:
    local = library.Local()
    local.value = 1
    context = contextvars.copy_context()
    return in_thread(lambda: context.run(getattr, local, "value", None))


@LOCALS.add
def local_in_to_thread(library: Library) -> object:
    local = library.Local()

    async def main() -> object:
        local.value = 1
        return await asyncio.to_thread(getattr, local, "value", None)

    return asyncio.run(main())


@LOCALS.add
def critical_local_in_copied_context_of_another_thread(library: Library) -> object:
    local = library.Local(thread_critical=True)
    local.value = 1

    async def main() -> object:
        local.inside = 2
        read = [local.inside, getattr(local, "value", None)]
        there = await asyncio.to_thread(lambda: [hasattr(local, "inside"), hasattr(local, "value")])
        return [read, there]

    return [asyncio.run(main()), local.value, hasattr(local, "inside")]


@LOCALS.add
def local_changed_in_thread_insensitive_code_comes_back(library: Library) -> object:
    local = library.Local()

    def change() -> int:
        local.value += 1
        value: int = local.value
        return value

    async def main() -> list[int]:
        local.value = 1
        free = library.sync_to_async(change, thread_sensitive=False)
        return [await free(), local.value, await library.sync_to_async(change)(), local.value]

    return [asyncio.run(main()), library.async_to_sync(main)(), hasattr(local, "value")]


# --- CurrentThreadExecutor ---------------------------------------------------------


@LOCALS.add
def current_thread_executor_runs_work_where_it_was_made(library: Library) -> object:
    executor, done = library.CurrentThreadExecutor(None), Future[list[object]]()

    def elsewhere() -> None:
        futures = [
            executor.submit(thread),
            executor.submit(int, "x"),
            executor.submit(pow, 2, exp=3),
        ]
        results = [
            futures[0].result() is home,
            type(futures[1].exception()).__name__,
            futures[2].result(),
        ]
        done.set_result(results)

    home = thread()
    worker = threading.Thread(target=elsewhere)
    worker.start()
    executor.run_until_future(done)
    worker.join()
    return done.result()


@LOCALS.add
def current_thread_executor_refuses(library: Library) -> object:
    executor, outer = library.CurrentThreadExecutor(None), library.CurrentThreadExecutor(None)
    inner = library.CurrentThreadExecutor(outer)
    done: Future[None] = Future()
    done.set_result(None)
    refused = [
        error_of(executor.submit, thread),
        in_thread(lambda: error_of(executor.run_until_future, done)),
    ]
    executor.run_until_future(done)
    inner.run_until_future(done)
    refused.append(in_thread(lambda: error_of(executor.submit, thread)))
    late: list[Future[threading.Thread]] = []
    in_thread(lambda: late.append(inner.submit(thread)))
    outer.run_until_future(done)
    return [refused, late[0].result() is thread()]
