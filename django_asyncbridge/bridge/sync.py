"""Call sync code from async code and async code from sync code.

`sync_to_async` and `async_to_sync` are the everyday functions, to call or to decorate with; `SyncToAsync` and
`AsyncToSync` the classes of what they return. `ThreadSensitiveContext` and `AsyncSingleThreadContext` give a block
a thread of its own. The names and their meaning are those of ``asgiref.sync``.
"""

import contextvars
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Literal, ParamSpec, TypeVar, overload

from django_asyncbridge.bridge._async_to_sync import AsyncToSync
from django_asyncbridge.bridge._contexts import AsyncSingleThreadContext, ThreadSensitiveContext
from django_asyncbridge.bridge._mirror import restore_context as _restore_context
from django_asyncbridge.bridge._sync_to_async import SyncToAsync
from django_asyncbridge.bridge._wrapping import iscoroutinefunction, markcoroutinefunction

__all__ = (
    "AsyncSingleThreadContext",
    "AsyncToSync",
    "SyncToAsync",
    "ThreadSensitiveContext",
    "_restore_context",
    "async_to_sync",
    "iscoroutinefunction",
    "markcoroutinefunction",
    "sync_to_async",
)

P = ParamSpec("P")
R = TypeVar("R")


@overload
def async_to_sync(
    *, force_new_loop: bool = False
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, R]]: ...


@overload
def async_to_sync(
    awaitable: Callable[P, Awaitable[R]], *, force_new_loop: bool = False
) -> Callable[P, R]: ...


def async_to_sync(
    awaitable: Callable[P, Awaitable[R]] | None = None, *, force_new_loop: bool = False
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, R]] | Callable[P, R]:
    """Return a sync function that runs a coroutine function to its end; see `AsyncToSync`.

    To call, ``async_to_sync(function)(arguments)``; or to decorate with, ``@async_to_sync`` or
    ``@async_to_sync(force_new_loop=True)``.

    Args:
        awaitable: the coroutine function; left out to decorate with arguments.
        force_new_loop: run on a new event loop even if one waits for the calling thread.

    Raises:
        TypeError: for a generator function.

    Source: ``asgiref.sync.async_to_sync``.
    """
    if awaitable is None:
        return lambda function: AsyncToSync(function, force_new_loop=force_new_loop)
    return AsyncToSync(awaitable, force_new_loop=force_new_loop)


@overload
def sync_to_async(
    *,
    thread_sensitive: bool = True,
    executor: None = None,
    context: contextvars.Context | None = None,
) -> Callable[[Callable[P, R]], Callable[P, Coroutine[Any, Any, R]]]: ...


@overload
def sync_to_async(
    *,
    thread_sensitive: Literal[False],
    executor: Executor | None = None,
    context: contextvars.Context | None = None,
) -> Callable[[Callable[P, R]], Callable[P, Coroutine[Any, Any, R]]]: ...


@overload
def sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: bool = True,
    executor: None = None,
    context: contextvars.Context | None = None,
) -> Callable[P, Coroutine[Any, Any, R]]: ...


@overload
def sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: Literal[False],
    executor: Executor | None = None,
    context: contextvars.Context | None = None,
) -> Callable[P, Coroutine[Any, Any, R]]: ...


def sync_to_async(
    func: Callable[P, R] | None = None,
    *,
    thread_sensitive: bool = True,
    executor: Executor | None = None,
    context: contextvars.Context | None = None,
) -> (
    Callable[[Callable[P, R]], Callable[P, Coroutine[Any, Any, R]]]
    | Callable[P, Coroutine[Any, Any, R]]
):
    """Return a coroutine function that runs a sync function in a thread; see `SyncToAsync`.

    To call, ``await sync_to_async(function)(arguments)``; or to decorate with, ``@sync_to_async`` or
    ``@sync_to_async(thread_sensitive=False)``.

    Args:
        func: the sync function; left out to decorate with arguments.
        thread_sensitive: whether it must run in the home thread of the call chain.
        executor: where to run it instead of the loop's default executor; only with ``thread_sensitive=False``.
        context: run it in this context instead of a copy of the task's; nothing is carried back from it.

    Raises:
        TypeError: for a coroutine function or a generator function, for something that cannot be called, or for an
            executor together with ``thread_sensitive=True``.

    Source: ``asgiref.sync.sync_to_async``.
    """

    def wrap(function: Callable[P, R]) -> SyncToAsync[P, R]:
        return SyncToAsync(
            function, thread_sensitive=thread_sensitive, executor=executor, context=context
        )

    return wrap if func is None else wrap(func)
