"""Transactions and database work from async code.

`aatomic` is ``transaction.atomic`` for coroutines, `database_sync_to_async` is Channels' `sync_to_async` for code that uses the
ORM, and `sync_or_async` makes one helper of the ORM for both sides. Django's connections belong to threads. So what is one
transaction has to run in one thread: the home thread, which is where all thread-sensitive work of a call chain runs
anyway, Django's ``aget`` and ``asave`` as well. Work with ``thread_sensitive=False`` has another thread and another connection.

Which thread may touch what. An `AsyncAtomic` may be used by tasks of several event loops; a block is begun and ended in the home
thread of the task, see `_atomic`. Connections are touched in their own thread only, and left alone if tests share them.

Source: Django's documentation on transactions; ``channels.db``; failure cases C69, C77, C78.
"""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, Self, TypeVar, cast, overload

from django.db import DEFAULT_DB_ALIAS, connections

from django_asyncbridge._atomic import Block, logger, place_of_caller
from django_asyncbridge._atomic_guard import AtomicBlockError, current_block, open_blocks
from django_asyncbridge.bridge import _wrapping
from django_asyncbridge.bridge.sync import SyncToAsync, iscoroutinefunction
from django_asyncbridge.conf import require_app

__all__ = (
    "AsyncAtomic",
    "AtomicBlockError",
    "DatabaseSyncToAsync",
    "SyncOrAsync",
    "aatomic",
    "atomic_request_view",
    "database_sync_to_async",
    "sync_or_async",
)

P = ParamSpec("P")
P2 = ParamSpec("P2")
R = TypeVar("R")
S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


class AsyncAtomic:
    """What `aatomic` returns: an async context manager and decorator, to be used as often as one likes.

    Tasks may use the same one at the same time, and one inside the other.
    """

    def __init__(self, using: str | None, savepoint: bool, durable: bool, place: str = "") -> None:
        self._options = using, savepoint, durable
        self._place = place
        self._blocks: list[Block] = []

    async def __aenter__(self) -> None:
        require_app("aatomic()")
        block = Block(*self._options, self._place or place_of_caller(1))
        await block.begin()
        self._blocks.append(block)
        current_block.set(block)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        block = self._innermost()
        try:
            await block.end(kind, error, trace)
        except Exception:
            # A cancellation goes on, whatever happens on its way.
            if not isinstance(error, asyncio.CancelledError):
                raise
            logger.warning("rolling back failed after a cancellation in aatomic()", exc_info=True)
        finally:
            if current_block.get() is block:
                current_block.set(block.outer)
            del error, trace

    def _innermost(self) -> Block:
        """Take out the block that is to be left: the innermost of this task, or else the latest."""
        if not self._blocks:
            raise AtomicBlockError("aatomic() was left without having been entered")
        inside = (block for block in open_blocks() if block in self._blocks)
        # Another context, as fixtures and async generators that are closed by the event loop have.
        block = next(inside, self._blocks[-1])
        self._blocks.remove(block)
        return block

    def __call__(self, func: F) -> F:
        """Have each call of a coroutine function run in a block of its own."""
        if inspect.isasyncgenfunction(func):
            raise TypeError(
                f"aatomic cannot decorate the async generator function {_wrapping.describe(func)}, as nobody knows when its "
                "iteration ends; write 'async with aatomic():' inside it, or around the 'async for'"
            )
        if not _wrapping.is_async(func):
            raise TypeError(
                f"aatomic decorates coroutine functions, and {_wrapping.describe(func)} is none; decorate it with "
                "django.db.transaction.atomic"
            )
        place = f"aatomic() around {_wrapping.describe(func)}"
        options = self._options

        @functools.wraps(func)
        async def atomic(*args: Any, **kwargs: Any) -> Any:
            async with AsyncAtomic(*options, place):
                return await func(*args, **kwargs)

        return cast("F", atomic)

    def __enter__(self) -> NoReturn:
        raise TypeError(
            "aatomic() is for coroutines: write 'async with aatomic():', or 'with transaction.atomic():' in sync code"
        )

    def __exit__(self, *exc_info: object) -> None:
        """Be there, so that ``with`` comes to `__enter__`, which explains."""


@overload
def aatomic(using: F) -> F: ...


@overload
def aatomic(
    using: str | None = None, savepoint: bool = True, durable: bool = False
) -> AsyncAtomic: ...


def aatomic(
    using: str | F | None = None, savepoint: bool = True, durable: bool = False
) -> AsyncAtomic | F:
    """Make what a coroutine does with the database happen as a whole or not at all: async ``transaction.atomic``.

    Use it as ``async with aatomic():``, or decorate a coroutine function with ``@aatomic`` or ``@aatomic(durable=True)``.
    Inside another block, async or sync, it sets a savepoint.

    Where it runs: the transaction is that of the home thread's connection. Whatever runs there is part of it: Django's async
    ORM, `sync_to_async` functions, also with ``transaction.atomic()`` in them, and all tasks started inside the block.
    Work with ``thread_sensitive=False`` is not. ``transaction.on_commit`` callbacks run in the home thread.

    Tasks that were not started inside but share the thread are refused the connection as long as the block is open, for their
    queries would become part of the transaction. So let each task that uses transactions have a thread of its own, by entering
    a `ThreadSensitiveContext`, as each request has. Of the tasks started inside, only one at a time can be in
    a nested block. A block that is left before those inside it is rolled back with them.

    Cancellation: nothing begun is left open. Cancelled before it begins, the block never does; cancelled in it, it is rolled
    back. Once the commit has begun it is completed, with its ``on_commit`` callbacks. In each case CancelledError is raised
    when that is done. What then fails is logged as a warning.

    Args:
        using: the alias of the database; None for the default one. Or the function, if it is a plain decorator.
        savepoint: whether a nested block sets a savepoint.
        durable: whether to refuse being nested.

    Raises:
        django.core.exceptions.ImproperlyConfigured: when the app is not installed.
        AtomicBlockError: when another task's block is open on the connection, or when it could not be committed because it is not
            left in the order or the thread in which it was entered.
        RuntimeError: for a durable block inside another one.
        TypeError: for a function that is not a coroutine function.
        django.utils.connection.ConnectionDoesNotExist: for an alias that is not in ``DATABASES``.

    Source: ``django.db.transaction.atomic``.
    """
    if callable(using):
        return AsyncAtomic(DEFAULT_DB_ALIAS, savepoint, durable)(using)
    return AsyncAtomic(using, savepoint, durable)


def atomic_request_view(view: F) -> F:
    """Return a coroutine view in a transaction of each database that has ``ATOMIC_REQUESTS``; the view itself if none has.

    For handlers. Views decorated with ``transaction.non_atomic_requests`` are exempt, from all or from one. Look at it once per request:
    settings of databases change in tests.

    Raises:
        TypeError: for a sync view, if there is such a database.

    Source: Django's documentation, "Tying transactions to HTTP requests"; failure case C78.
    """
    exempt = getattr(view, "_non_atomic_requests", ())
    for alias, settings in connections.settings.items():
        if settings["ATOMIC_REQUESTS"] and alias not in exempt:
            view = aatomic(alias)(view)
    return view


def _close_old_connections() -> None:
    """Close this thread's connections that are broken or too old, but none in a transaction or shared by tests."""
    for connection in connections.all(initialized_only=True):
        # Django's own function takes an open transaction for a mistake, and closes the connection.
        if not connection.in_atomic_block and not connection.allow_thread_sharing:
            connection.close_if_unusable_or_obsolete()


class DatabaseSyncToAsync(SyncToAsync[P, R]):
    """`SyncToAsync` for functions that use the database: what `database_sync_to_async` returns.

    Before and after each call it closes the thread's connections that are broken or older than ``CONN_MAX_AGE``, which Django
    does between requests only. A connection in a transaction stays.

    Source: ``channels.db.DatabaseSyncToAsync``.
    """

    def thread_handler(
        self,
        loop: asyncio.AbstractEventLoop,
        exc_info: Any,
        task_context: Any,
        func: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Run the function in the worker, between two looks at its connections."""
        __traceback_hide__ = True
        _close_old_connections()
        try:
            return super().thread_handler(loop, exc_info, task_context, func, *args, **kwargs)
        finally:
            _close_old_connections()
            # The traceback of an error keeps this frame.
            del exc_info, task_context, func, args, kwargs


@overload
def database_sync_to_async(
    func: Callable[P, R], *, thread_sensitive: bool = True, executor: Executor | str | None = None
) -> Callable[P, Coroutine[Any, Any, R]]: ...


@overload
def database_sync_to_async(
    func: None = None, *, thread_sensitive: bool = True, executor: Executor | str | None = None
) -> Callable[[Callable[P, R]], Callable[P, Coroutine[Any, Any, R]]]: ...


def database_sync_to_async(
    func: Callable[..., Any] | None = None,
    *,
    thread_sensitive: bool = True,
    executor: Executor | str | None = None,
) -> Callable[..., Any]:
    """Return a coroutine function that runs a sync function which uses the database; see `DatabaseSyncToAsync`.

    To call, ``await database_sync_to_async(function)(arguments)``; or to decorate with. Use it where no request ends and so
    nobody closes connections: in consumers, background tasks, and with ``thread_sensitive=False``.

    Args:
        func: the sync function; left out to decorate with arguments.
        thread_sensitive: whether it must run in the home thread. False: it has another connection, outside of any transaction.
        executor: where to run it instead of in one of the process's reused workers, or an alias of
            ``ASYNCBRIDGE["EXECUTORS"]``; only with ``thread_sensitive=False``.

    Raises:
        TypeError: for what `SyncToAsync` refuses.

    Source: ``channels.db.database_sync_to_async``.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        return DatabaseSyncToAsync(function, thread_sensitive=thread_sensitive, executor=executor)

    return wrap if func is None else wrap(func)


class SyncOrAsync(Generic[P, R]):
    """A sync function for both sides: what `sync_or_async` returns.

    Attributes:
        sync: the function itself, for sync code.
        asynchronous: the same as a coroutine function, by way of `database_sync_to_async`.
    """

    __name__: str
    __wrapped__: Callable[P, R]

    def __init__(self, func: Callable[P, R]) -> None:
        if iscoroutinefunction(func):
            raise TypeError(
                f"sync_or_async takes sync functions, and {_wrapping.describe(func)} is a coroutine function; async "
                "code can await it as it is, sync code calls async_to_sync(function)"
            )
        self.asynchronous = database_sync_to_async(func)
        self.sync = func
        functools.update_wrapper(self, func)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Call the function, or on an event loop return a coroutine that does.

        The type checker cannot know which; `sync` and `asynchronous` have types.
        """
        __traceback_hide__ = True
        if asyncio._get_running_loop() is None:
            return self.sync(*args, **kwargs)
        return self.asynchronous(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(
        self: "SyncOrAsync[Concatenate[S, P2], R]", instance: S, owner: type | None = None
    ) -> "SyncOrAsync[P2, R]": ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind to an instance as a method does; through the class, return this."""
        if instance is None:
            return self
        bound = cast("Any", self.sync).__get__(instance, owner)
        return SyncOrAsync(bound)


def sync_or_async(func: Callable[P, R]) -> SyncOrAsync[P, R]:
    """Make a helper that uses the database callable from sync and async code: a decorator.

    In a thread that runs no event loop a call runs the function and returns its value. On an event loop a call returns a coroutine,
    to be awaited: it runs the function in the home thread. Forgetting ``await`` there makes Python warn that the coroutine
    was never awaited; the function has not run. Where the reader should see which, call ``.sync(...)`` or ``.asynchronous(...)``.
    Methods work as functions do.

    Args:
        func: a sync function or method, which returns a value: not a lazy query, which would be run where it is looked at.

    Raises:
        TypeError: for a coroutine function, and what else `SyncToAsync` refuses.
    """
    return SyncOrAsync(func)
