"""What the tests of transactions share: homes to run coroutines in, gates in their threads, and what must hold afterwards."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from django_asyncbridge._atomic_guard import Guard
from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from tests.bridge import LIMIT_SECONDS

T = TypeVar("T")
Main = Callable[[], Coroutine[Any, Any, T]]
Run = Callable[[Main[Any]], Any]


def close_connections() -> None:
    """Close this thread's connections, also those to a database in memory, which Django keeps open."""
    for connection in connections.all(initialized_only=True):
        BaseDatabaseWrapper.close(connection)


def close_connections_of_requests() -> None:
    """Close the connections of all request threads, each in its thread."""
    pool = _state.request_workers
    leases = [Lease(pool) for _ in range(pool.statistics().workers)]
    for closed in [lease.submit(close_connections) for lease in leases]:
        closed.result(LIMIT_SECONDS)
    for lease in leases:
        lease.shutdown()


def assert_clean() -> None:
    """Check that the connection of this thread is in no transaction, is usable, and that nobody guards it."""
    connection = connections["default"]
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert connection.get_autocommit()
    assert not connection.in_atomic_block
    assert not connection.needs_rollback
    assert connection.savepoint_ids == []
    assert connection.atomic_blocks == []
    assert [one for one in connection.execute_wrappers if isinstance(one, Guard)] == []
    assert connection.run_on_commit == []
    assert "asyncbridge" not in str(vars(connection).keys())
    assert type(connection).__mro__[1] is BaseDatabaseWrapper


def below_sync_caller(main: Main[T]) -> T:
    """Run where a sync caller waits: its thread is home, with its connection."""

    async def checked() -> T:
        try:
            return await main()
        finally:
            await sync_to_async(assert_clean)()

    return async_to_sync(checked)()


def in_context(main: Main[T]) -> T:
    """Run in a `ThreadSensitiveContext`: a worker is home, with a connection of its own."""

    async def checked() -> T:
        async with ThreadSensitiveContext():
            try:
                return await main()
            finally:
                await sync_to_async(assert_clean)()
                await sync_to_async(close_connections)()

    return asyncio.run(checked())


in_both_homes = pytest.mark.parametrize("run", [below_sync_caller, in_context])


async def create(name: str) -> None:
    """Write something that can be looked for."""
    await User.objects.acreate(username=name)


def names() -> list[str]:
    """Return what was written and committed."""
    return sorted(User.objects.values_list("username", flat=True))


async def turns(number: int = 5) -> None:
    """Let the event loop turn."""
    for _ in range(number):
        await asyncio.sleep(0)


async def until(event: threading.Event) -> None:
    """Wait for what a thread is about to do."""
    assert await sync_to_async(event.wait, thread_sensitive=False)(LIMIT_SECONDS)


class Gate:
    """Stops a thread where the test wants it.

    Attributes:
        reached: set when the thread is there.
        opened: set by the test to let it go on.
    """

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        """Stop here until the test opens the gate."""
        self.reached.set()
        assert self.opened.wait(LIMIT_SECONDS)


@contextmanager
def gate_before(method: str, kind: type[Any] = transaction.Atomic) -> Iterator[Gate]:
    """Put a gate into Django's block: ``__enter__`` or ``__exit__``."""
    gate = Gate()
    original = getattr(kind, method)

    def gated(self: Any, *args: Any) -> Any:
        gate.pass_through()
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, method, gated)
        yield gate


async def cancelled(task: Awaitable[object]) -> None:
    """Wait for a task that has to end cancelled."""
    with pytest.raises(asyncio.CancelledError):
        await task
