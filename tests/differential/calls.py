"""Scenarios of single calls: arguments, what is refused, and errors."""

import asyncio
import functools
import warnings
from collections.abc import AsyncIterator, Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.differential.library import Library, Table, async_error_of, error_of

__all__ = ("CALLS",)

CALLS = Table("calls")


def arguments(*args: object, **kwargs: object) -> list[object]:
    """Return what was given."""
    return [args, kwargs]


async def async_arguments(*args: object, **kwargs: object) -> list[object]:
    """Return what was given."""
    return [args, kwargs]


# --- Arguments, refusals ------------------------------------------------------


@CALLS.add
def arguments_named_as_parameters_of_the_bridge_arrive(library: Library) -> object:
    of_sync_to_async = ["func", "loop", "exc_info", "task_context", "context", "executor", "child"]
    of_async_to_sync = ["awaitable", "call_result", "force_new_loop", "args", "kwargs", "parent"]
    given = dict.fromkeys(of_sync_to_async + of_async_to_sync, 1)
    return [
        asyncio.run(library.sync_to_async(arguments)(1, 2, **given)),
        library.async_to_sync(async_arguments)(1, 2, **given),
    ]


@CALLS.add
def argument_named_self_is_refused(library: Library) -> object:
    return [
        error_of(library.sync_to_async(arguments), self=1),
        error_of(library.async_to_sync(async_arguments), self=1),
    ]


@CALLS.add
def sync_to_async_refuses_what_is_async_or_cannot_be_called(library: Library) -> object:
    class AsyncCallable:
        async def __call__(self) -> None: ...

    marked = library.markcoroutinefunction(functools.partial(arguments))
    refused = [
        async_arguments,
        AsyncCallable(),
        functools.partial(async_arguments),
        1,
        None,
        marked,
    ]
    return [error_of(library.SyncToAsync, thing) for thing in refused]


@CALLS.add
def sync_to_async_with_generator_function(library: Library) -> object:
    # What comes of it is not the same: there the body runs in the thread of the event loop (C60).
    def generate() -> Iterator[int]:
        yield 1  # pragma: no cover  # nobody gets as far as this

    return error_of(library.sync_to_async, generate)


@CALLS.add
def sync_to_async_with_async_generator_function(library: Library) -> object:
    async def generate() -> AsyncIterator[int]:
        yield 1  # pragma: no cover  # nobody gets as far as this

    return error_of(library.sync_to_async, generate)


@CALLS.add
def sync_to_async_refuses_executor_for_thread_sensitive(library: Library) -> object:
    with ThreadPoolExecutor(1) as executor:
        return [
            error_of(library.sync_to_async, arguments, executor=executor),
            error_of(library.sync_to_async(executor=executor), arguments),
            error_of(library.sync_to_async, arguments, thread_sensitive=False, executor=executor),
        ]


@CALLS.add
def sync_to_async_takes_classes_and_builtins(library: Library) -> object:
    async def main() -> list[object]:
        return [await library.sync_to_async(dict)(a=1), await library.sync_to_async(len)("ab")]

    return asyncio.run(main())


def warned(function: Any, *args: object) -> list[str]:
    """Call, and return the classes of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error_of(function, *args)
    return [warning.category.__name__ for warning in caught]


@CALLS.add
def async_to_sync_warns_of_what_is_not_marked_as_async(library: Library) -> object:
    class AsyncCallable:
        async def __call__(self) -> None: ...

    things = [arguments, async_arguments, AsyncCallable(), functools.partial(async_arguments), 1]
    return [warned(library.AsyncToSync, thing) for thing in things]


@CALLS.add
def async_to_sync_takes_what_returns_an_awaitable(library: Library) -> object:
    def later() -> Awaitable[list[object]]:
        return async_arguments(1)

    async def main() -> list[object]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(3)
        return [await library.sync_to_async(library.async_to_sync(lambda: future))()]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [library.async_to_sync(later)(), asyncio.run(main())]


@CALLS.add
def async_to_sync_of_what_returns_no_awaitable(library: Library) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return error_of(library.async_to_sync(arguments))


@CALLS.add
def async_to_sync_whose_function_raises_before_there_is_an_awaitable(library: Library) -> object:
    def broken() -> Awaitable[None]:
        raise LookupError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = library.async_to_sync(broken)
    return [error_of(wrapped), library.async_to_sync(async_arguments)(1)]


@CALLS.add
def async_to_sync_is_refused_where_a_loop_runs(library: Library) -> object:
    async def main() -> list[str]:
        return [
            error_of(library.async_to_sync(async_arguments)),
            error_of(library.async_to_sync(async_arguments, force_new_loop=True)),
        ]

    return asyncio.run(main())


@CALLS.add
def sync_to_async_needs_a_running_loop(library: Library) -> object:
    return error_of(library.sync_to_async(arguments)().send, None)


# --- Errors ------------------------------------------------------------------


@CALLS.add
def stop_iteration_from_sync_to_async(library: Library) -> object:
    return asyncio.run(async_error_of(library.sync_to_async(next)(iter(()))))


def raised_by_both(library: Library, error: type[BaseException]) -> object:
    """Return what is raised outside if each side raises an error."""

    def fail() -> None:
        raise error

    async def async_fail() -> None:
        raise error

    return [
        error_of(asyncio.run, library.sync_to_async(fail)()),
        error_of(library.async_to_sync(async_fail)),
        error_of(library.async_to_sync(library.sync_to_async(fail))),
        error_of(asyncio.run, library.sync_to_async(library.async_to_sync(async_fail))()),
    ]


@CALLS.add
def stop_async_iteration_passes(library: Library) -> object:
    return raised_by_both(library, StopAsyncIteration)


@CALLS.add
def timeout_error_passes(library: Library) -> object:
    return raised_by_both(library, TimeoutError)


@CALLS.add
def invalid_state_error_passes(library: Library) -> object:
    return raised_by_both(library, asyncio.InvalidStateError)


@CALLS.add
def generator_exit_passes(library: Library) -> object:
    return raised_by_both(library, GeneratorExit)


@CALLS.add
def cancelled_error_that_nobody_asked_for_passes(library: Library) -> object:
    return raised_by_both(library, asyncio.CancelledError)


@CALLS.add
def cause_of_error_is_kept(library: Library) -> object:
    def fail() -> None:
        raise LookupError("effect") from ArithmeticError("cause")

    found: list[str] = []
    try:
        library.async_to_sync(library.sync_to_async(fail))()
    except LookupError as error:
        found += [str(error), type(error.__cause__).__name__]
    return found
