"""`aatomic` blocks that outlive the thread they were entered in: nothing of them is committed, in whichever thread they go on."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction

from django_asyncbridge import _atomic_guard
from django_asyncbridge._atomic_guard import OpenBlock
from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._leases import Lease
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django_asyncbridge.db import AtomicBlockError, aatomic
from tests.bridge import LIMIT_SECONDS
from tests.db_support import close_connections, create, names

pytestmark = pytest.mark.django_db(transaction=True)


def handed_over() -> None:
    """Wait until every request thread has been looked after and is idle."""
    end = time.monotonic() + LIMIT_SECONDS
    while (now := _state.request_workers.statistics()).idle != now.workers:
        assert time.monotonic() < end
        threading.Event().wait(0.001)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Close the connections of all threads afterwards: a database in memory is not closed by Django."""
    yield
    for pool in (_state.request_workers, _state.default_workers):
        leases = [Lease(pool) for _ in range(pool.statistics().workers)]
        for lease in leases:
            lease.submit(close_connections).result(LIMIT_SECONDS)
        for lease in leases:
            lease.shutdown()


class Job:
    """A task with an open block, which goes on when it is told to."""

    def __init__(self) -> None:
        self.inside, self.go_on = asyncio.Event(), asyncio.Event()
        self.alone = False

    async def run(self) -> None:
        try:
            async with aatomic():
                await create("first")
                self.inside.set()
                await self.go_on.wait()
                if not self.alone:
                    await create("second")
        finally:
            await sync_to_async(close_connections)()

    async def end(self, task: "asyncio.Task[None]") -> BaseException | None:
        self.go_on.set()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        return outcome


async def outlives_context(job: Job) -> "asyncio.Task[None]":
    async with ThreadSensitiveContext():
        task = asyncio.create_task(job.run())
        await job.inside.wait()
    return task


async def outlives_sync_caller(job: Job) -> "asyncio.Task[None]":
    async def inner() -> "asyncio.Task[None]":
        task = asyncio.create_task(job.run())
        await job.inside.wait()
        return task

    def caller() -> "asyncio.Task[None]":
        return async_to_sync(inner)()

    return await sync_to_async(caller, thread_sensitive=False)()


Outlive = Callable[[Job], Awaitable["asyncio.Task[None]"]]
each_way = pytest.mark.parametrize("outlive", [outlives_context, outlives_sync_caller])


@each_way
def test_orphan_that_goes_on_is_refused_and_nothing_is_committed(outlive: Outlive) -> None:
    async def main() -> BaseException | None:
        job = Job()
        return await job.end(await outlive(job))

    outcome = asyncio.run(main())
    handed_over()
    assert isinstance(outcome, AtomicBlockError)
    assert "has lost its transaction" in str(outcome)
    assert "test_db_orphans.py" in str(outcome), "it does not say where the block was entered"
    assert names() == []


@each_way
def test_orphan_that_only_leaves_is_told_that_nothing_was_committed(outlive: Outlive) -> None:
    async def main() -> BaseException | None:
        job = Job()
        job.alone = True
        return await job.end(await outlive(job))

    outcome = asyncio.run(main())
    handed_over()
    assert isinstance(outcome, AtomicBlockError)
    assert names() == []


def test_orphan_in_the_next_request_s_thread_is_refused_there_too() -> None:
    async def main() -> BaseException | None:
        job = Job()
        task = await outlives_context(job)
        async with ThreadSensitiveContext():
            await create("next")
            return await job.end(task)

    assert isinstance(asyncio.run(main()), AtomicBlockError)
    handed_over()
    assert names() == ["next"]


def test_block_in_a_context_leaves_other_threads_alone() -> None:
    """Work that is not thread-sensitive is outside of the transaction, as ever."""

    def elsewhere() -> int:
        return User.objects.count()

    async def main() -> int:
        async with ThreadSensitiveContext():
            count = await sync_to_async(User.objects.count)()
            async with aatomic():
                count += await sync_to_async(elsewhere, thread_sensitive=False)()
            return count

    assert asyncio.run(main()) == 0


def test_block_of_another_executor_is_never_said_to_have_lost_its_thread() -> None:
    """Nothing tells whether it takes more work."""
    block = OpenBlock(transaction.atomic(), "here")
    with ThreadPoolExecutor(1) as executor:
        block.home = executor
        assert not block.has_lost_its_home()
    assert not OpenBlock(transaction.atomic(), "here").has_lost_its_home()


def test_watch_of_a_connection_that_is_made_again_is_one() -> None:
    before = list(connection.execute_wrappers)
    _atomic_guard._watch(connection)
    _atomic_guard._watch(connection)
    try:
        assert connection.execute_wrappers.count(_atomic_guard._refuse_orphan) == 1
    finally:
        connection.execute_wrappers[:] = before
