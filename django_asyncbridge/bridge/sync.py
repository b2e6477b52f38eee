"""Call sync code from async code and async code from sync code.

`sync_to_async` and `async_to_sync` are the everyday functions, to call or to decorate with; `SyncToAsync` and
`AsyncToSync` the classes of what they return. `ThreadSensitiveContext` and `AsyncSingleThreadContext` give a block
a thread of its own. These names and their meaning are those of ``asgiref.sync``.

Beyond that: sync code asks with `cancelled` and `check_cancelled` whether its caller still waits; a `WorkerPool` is an executor of
reused threads; `add_observer` tells of each `Crossing`.
"""

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from django_asyncbridge.bridge import _state, _wrapping
from django_asyncbridge.bridge._async_to_sync import AsyncToSync
from django_asyncbridge.bridge._cancellation import cancelled, check_cancelled
from django_asyncbridge.bridge._contexts import ThreadSensitiveContext
from django_asyncbridge.bridge._crossings import Crossing, add_observer, remove_observer
from django_asyncbridge.bridge._generator_functions import (
    AsyncGeneratorToSync,
    GeneratorToAsync,
    ThreadCall,
)
from django_asyncbridge.bridge._mirror import restore_context as _restore_context
from django_asyncbridge.bridge._own_loop import LoopFactory
from django_asyncbridge.bridge._single_thread import AsyncSingleThreadContext
from django_asyncbridge.bridge._sync_to_async import SyncToAsync
from django_asyncbridge.bridge._workers import WorkerPool, WorkerPoolStatistics, WorkersBusy
from django_asyncbridge.bridge._wrapping import iscoroutinefunction, markcoroutinefunction
from django_asyncbridge.bridge.iteration import LoopIterator

__all__ = (
    "AsyncSingleThreadContext",
    "AsyncToSync",
    "Crossing",
    "SyncToAsync",
    "ThreadSensitiveContext",
    "WorkerPool",
    "WorkerPoolStatistics",
    "WorkersBusy",
    "_restore_context",
    "add_observer",
    "async_to_sync",
    "cancelled",
    "check_cancelled",
    "iscoroutinefunction",
    "markcoroutinefunction",
    "pool_statistics",
    "remove_observer",
    "sync_to_async",
)

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")


class _Unknown:
    """What no function returns, so only one of which a type checker knows nothing (``Any``) seems to.

    For such a function mypy finds that all overloads match, and makes an "untyped" function of it if all of them return
    a function: its call would be an error. The overload with this class returns something else.
    """


class _ToSync(Protocol):
    """What `async_to_sync` with arguments decorates with."""

    @overload
    def __call__(self, awaitable: Callable[P, Awaitable[R]], /) -> Callable[P, R]: ...

    @overload
    def __call__(
        self, awaitable: Callable[P, AsyncIterator[Y]], /
    ) -> Callable[P, LoopIterator[Y]]: ...

    @overload
    def __call__(self, awaitable: Callable[P, _Unknown], /) -> Any: ...


@overload
def async_to_sync(
    *,
    force_new_loop: bool = False,
    loop_factory: LoopFactory | None = None,
    timeout: float | None = None,
) -> _ToSync: ...


@overload
def async_to_sync(
    awaitable: Callable[P, Awaitable[R]],
    *,
    force_new_loop: bool = False,
    loop_factory: LoopFactory | None = None,
    timeout: float | None = None,
) -> Callable[P, R]: ...


@overload
def async_to_sync(
    awaitable: Callable[P, AsyncIterator[Y]],
    *,
    force_new_loop: bool = False,
    loop_factory: LoopFactory | None = None,
    timeout: float | None = None,
) -> Callable[P, LoopIterator[Y]]: ...


@overload
def async_to_sync(
    awaitable: Callable[P, _Unknown],
    *,
    force_new_loop: bool = False,
    loop_factory: LoopFactory | None = None,
    timeout: float | None = None,
) -> Any: ...


def async_to_sync(
    awaitable: Callable[..., Any] | None = None,
    *,
    force_new_loop: bool = False,
    loop_factory: LoopFactory | None = None,
    timeout: float | None = None,
) -> Callable[..., Any]:
    """Return a sync function that runs a coroutine function to its end; see `AsyncToSync`.

    To call, ``async_to_sync(function)(arguments)``; or to decorate with, ``@async_to_sync`` or
    ``@async_to_sync(force_new_loop=True)``.

    Of an async generator function it makes a function that returns a `LoopIterator`, to iterate over with ``for``; see
    `iterate_on_loop`. A function that is no async generator function and returns an async iterator cannot be told
    from others: call it, and pass what it returns to `iterate_on_loop`.

    Args:
        awaitable: the coroutine function, or async generator function; left out to decorate with arguments.
        force_new_loop: run on a new event loop, closed at the end, even if one waits for the calling thread.
        loop_factory: makes the event loop if none waits for the calling thread, as ``uvloop.new_event_loop`` does. Each
            thread keeps one loop for each factory, as long as that exists: pass the same function each time.
        timeout: seconds after which the coroutine is cancelled and TimeoutError raised; None for no limit.

    Raises:
        TypeError: for a generator function; for an async generator function with a `loop_factory` or `timeout`.
        ValueError: for a negative `timeout`.

    Source: ``asgiref.sync.async_to_sync``.
    """
    options: dict[str, Any] = {"force_new_loop": force_new_loop}
    if loop_factory is not None:
        options["loop_factory"] = loop_factory
    if timeout is not None:
        options["timeout"] = timeout
    if awaitable is None:
        return lambda function: _to_sync_class(function, options)(function, **options)
    return _to_sync_class(awaitable, options)(awaitable, **options)


def _to_sync_class(function: object, options: dict[str, Any]) -> Callable[..., Callable[..., Any]]:
    # To be called by the public function itself: `AsyncToSync` looks for its caller's line.
    if not _wrapping.is_async_generator_function(function):
        return AsyncToSync
    _refuse_options(function, options, "loop_factory", "timeout")
    return AsyncGeneratorToSync


def _refuse_options(function: object, options: dict[str, Any], *names: str) -> None:
    """Refuse what only a call with one result can be given."""
    refused = sorted(options.keys() & set(names))
    if refused:
        raise TypeError(
            f"{_wrapping.describe(function)} is a generator function, whose items come one by one: "
            f"it cannot be given {' and '.join(refused)}"
        )


@overload
def sync_to_async(
    *,
    thread_sensitive: bool = True,
    executor: None = None,
    context: contextvars.Context | None = None,
) -> Callable[[Callable[P, R]], Callable[P, ThreadCall[R]]]: ...


@overload
def sync_to_async(
    *,
    thread_sensitive: Literal[False],
    executor: Executor | str | None = None,
    context: contextvars.Context | None = None,
    abandon_on_cancel: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, ThreadCall[R]]]: ...


@overload
def sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: bool = True,
    executor: None = None,
    context: contextvars.Context | None = None,
) -> Callable[P, ThreadCall[R]]: ...


@overload
def sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: Literal[False],
    executor: Executor | str | None = None,
    context: contextvars.Context | None = None,
    abandon_on_cancel: bool = False,
) -> Callable[P, ThreadCall[R]]: ...


def sync_to_async(
    func: Callable[..., Any] | None = None,
    *,
    thread_sensitive: bool = True,
    executor: Executor | str | None = None,
    context: contextvars.Context | None = None,
    abandon_on_cancel: bool = False,
) -> Callable[..., Any]:
    """Return a coroutine function that runs a sync function in a thread; see `SyncToAsync`.

    To call, ``await sync_to_async(function)(arguments)``; or to decorate with, ``@sync_to_async`` or
    ``@sync_to_async(thread_sensitive=False)``.

    Of a generator function it makes a function that returns a `ThreadIterator`, to iterate over with ``async for``; see
    `iterate_in_thread`. What counts is how the function is written: one that merely returns a generator is called in
    a thread as any other. Annotations do not tell the two apart, so type checkers let the result of a function that
    returns a ``Generator`` or ``Iterator`` be awaited and iterated over; see `ThreadCall`.

    Args:
        func: the sync function, or generator function; left out to decorate with arguments.
        thread_sensitive: whether it must run in the home thread of the call chain.
        executor: where to run it instead of in one of the process's reused workers; only with ``thread_sensitive=False``.
            With the Django app, an alias of ``ASYNCBRIDGE["EXECUTORS"]`` is enough, looked up anew for each call.
        context: run it in this context instead of a copy of the task's; nothing is carried back from it.
        abandon_on_cancel: do not wait for the function when the task is cancelled; only with ``thread_sensitive=False``.

    Raises:
        TypeError: for a coroutine function or an async generator function, for something that cannot be called, for an
            executor or `abandon_on_cancel` together with ``thread_sensitive=True``, and for `abandon_on_cancel` with a
            generator function.

    Source: ``asgiref.sync.sync_to_async``.
    """
    options: dict[str, Any] = {
        "thread_sensitive": thread_sensitive,
        "executor": executor,
        "context": context,
    }
    if abandon_on_cancel:
        options["abandon_on_cancel"] = True

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        if not _wrapping.is_generator_function(function):
            return SyncToAsync(function, **options)
        _refuse_options(function, options, "abandon_on_cancel")
        return GeneratorToAsync(function, **options)

    return wrap if func is None else wrap(func)


def pool_statistics() -> tuple[WorkerPoolStatistics, ...]:
    """Return what the process's own pools of threads are doing now; in any thread.

    They are ``shared`` (the one thread outside of any context), ``request`` (lent to contexts), ``default`` (for calls
    that are not thread-sensitive) and ``loop`` (for event loops that had to leave their thread).
    """
    pools = (
        _state.shared_workers,
        _state.request_workers,
        _state.default_workers,
        _state.loop_workers,
    )
    return tuple(pool.statistics() for pool in pools)
