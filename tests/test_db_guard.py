"""The guard of a connection with an open `aatomic` block: who is refused, who is not, and what remains whole."""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import close_old_connections, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import TransactionManagementError

from django_asyncbridge._atomic import Block
from django_asyncbridge._atomic_guard import Guard, current_block, is_guarded
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django_asyncbridge.db import AtomicBlockError, aatomic
from tests.bridge import ManualExecutor, hand_driven_loop, turn
from tests.db_support import Run, assert_clean, close_connections, create, in_both_homes, names

pytestmark = pytest.mark.django_db(transaction=True)


def select() -> None:
    """Ask the database something that needs no table."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def close() -> None:
    """Close the connection."""
    connections["default"].close()


def sync_atomic() -> None:
    """Do nothing, in a transaction."""
    with transaction.atomic():
        raise AssertionError("entered")


def sync_atomic_without_savepoint() -> None:
    """Fail in a block that would mark the one around it."""
    with transaction.atomic(savepoint=False):
        User.objects.create(username="foreign")


async def nested() -> None:
    """Enter a block."""
    async with aatomic():
        raise AssertionError("entered")


USES: dict[str, Callable[[], Awaitable[object]]] = {
    "query": sync_to_async(select),
    "aget": lambda: User.objects.aget(username="owner"),
    "save": lambda: User(username="foreign").asave(),
    "delete": lambda: User.objects.all().adelete(),
    "atomic": sync_to_async(sync_atomic),
    "atomic without savepoint": sync_to_async(sync_atomic_without_savepoint),
    "aatomic": nested,
    "on_commit": lambda: sync_to_async(transaction.on_commit)(print),
    "close": sync_to_async(close),
    "set_rollback": lambda: sync_to_async(transaction.set_rollback)(True),
}


def outside() -> contextvars.Context:
    """Return a context that has the home of this one, and was not made inside any block."""
    context = contextvars.copy_context()
    context.run(current_block.set, None)
    return context


async def beside_block(use: Callable[[], Awaitable[object]]) -> None:
    """Open a block, and meanwhile have a task of another origin do something."""
    inside, done = asyncio.Event(), asyncio.Event()

    async def owner() -> None:
        async with aatomic():
            await create("owner")
            inside.set()
            await done.wait()

    async def foreign() -> None:
        await inside.wait()
        try:
            await use()
        finally:
            done.set()

    # The block is to be whole whatever happens to the other.
    outcomes = await asyncio.gather(owner(), foreign(), return_exceptions=True)
    assert outcomes[0] is None
    if outcomes[1] is not None:
        assert isinstance(outcomes[1], BaseException)
        raise outcomes[1]


@in_both_homes
@pytest.mark.parametrize("use", USES)
def test_foreign_task_is_refused_and_the_block_committed(run: Run, use: str) -> None:
    async def main() -> None:
        with pytest.raises(AtomicBlockError, match="was not started inside and would become part"):
            await beside_block(USES[use])

    run(main)
    assert names() == ["owner"]


@in_both_homes
def test_foreign_task_that_fails_does_not_take_back_a_rollback_asked_for(run: Run) -> None:
    async def main() -> None:
        inside, done = asyncio.Event(), asyncio.Event()

        async def owner() -> None:
            async with aatomic():
                await create("owner")
                await sync_to_async(transaction.set_rollback)(True)
                inside.set()
                await done.wait()

        task = asyncio.create_task(owner())
        await inside.wait()
        with pytest.raises(AtomicBlockError):
            await sync_to_async(sync_atomic_without_savepoint)()
        done.set()
        await task

    run(main)
    assert names() == []


def test_refusal_says_who_where_and_what_to_do() -> None:
    async def main() -> None:
        with pytest.raises(TransactionManagementError) as info:
            await beside_block(USES["query"])
        message = str(info.value)
        assert "'default' of MainThread" in message
        assert "task 'Task-" in message
        assert f"entered aatomic() at {__file__}:" in message
        assert "owner)" in message
        assert "ThreadSensitiveContext" in message

    async_to_sync(main)()


def test_refusal_for_a_decorated_function_names_it() -> None:
    async def main() -> None:
        inside, done = asyncio.Event(), asyncio.Event()

        @aatomic
        async def decorated() -> None:
            inside.set()
            await done.wait()

        task = asyncio.create_task(decorated())
        await inside.wait()
        with pytest.raises(AtomicBlockError, match=r"aatomic\(\) around .*decorated"):
            await sync_to_async(select)()
        done.set()
        await task

    async_to_sync(main)()


@in_both_homes
def test_end_of_a_request_leaves_the_connection_of_a_block_open(run: Run) -> None:
    """Of another one, or inside the block: Django would close the connection, and the block end without a word."""
    end_request = sync_to_async(close_old_connections)

    async def main() -> None:
        await beside_block(end_request)
        async with aatomic():
            await create("inside")
            await end_request()
        await end_request()

    run(main)
    assert names() == ["inside", "owner"]


@in_both_homes
def test_connection_may_be_closed_inside_its_block(run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            await sync_to_async(close)()

    run(main)


def test_task_in_a_context_of_its_own_is_not_refused() -> None:
    async def own_thread() -> None:
        with ThreadPoolExecutor(1) as executor:
            async with ThreadSensitiveContext(executor=executor):
                await sync_to_async(select)()
                await sync_to_async(close_connections)()

    async_to_sync(beside_block)(own_thread)
    assert names() == ["owner"]


def test_waiting_until_the_block_is_left_is_enough() -> None:
    async def main() -> None:
        await asyncio.gather(create("before"), create("before too"))
        async with aatomic():
            await create("inside")
        await create("after")

    async_to_sync(main)()
    assert names() == ["after", "before", "before too", "inside"]


@in_both_homes
@pytest.mark.parametrize("use", ["query", "save", "aatomic"])
def test_sibling_is_refused_while_the_other_is_in_a_nested_block(run: Run, use: str) -> None:
    async def main() -> None:
        async with aatomic():
            await create("outer")
            with pytest.raises(AtomicBlockError, match="would become part of its savepoint"):
                await asyncio.create_task(beside_block(USES[use]))
            await create("outer again")

    run(main)
    assert names() == ["outer", "outer again", "owner"]


@in_both_homes
def test_siblings_may_enter_nested_blocks_one_after_the_other(run: Run) -> None:
    async def main() -> None:
        turn = asyncio.Lock()

        async def sibling(name: str) -> None:
            async with turn, aatomic():
                await create(name)
                if name == "second":
                    raise KeyError(name)

        async with aatomic():
            outcomes = await asyncio.gather(
                *map(sibling, ("first", "second", "third")), return_exceptions=True
            )
        assert [type(one) for one in outcomes] == [type(None), KeyError, type(None)]

    run(main)
    assert names() == ["first", "third"]


@in_both_homes
def test_task_that_outlives_the_block_works_outside_of_it(run: Run) -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def outliving() -> None:
            await left.wait()
            await create("outliving")
            async with aatomic():
                await create("block of its own")

        with pytest.raises(KeyError):  # noqa: PT012  # the block is what raises
            async with aatomic():
                task = asyncio.create_task(outliving())
                raise KeyError
        left.set()
        await task

    run(main)
    assert names() == ["block of its own", "outliving"]


def test_block_that_was_left_is_forgotten_by_its_task() -> None:
    async def main() -> None:
        async with aatomic():
            outer = current_block.get()
            assert outer is not None
            async with aatomic():
                assert current_block.get() is not outer
            assert current_block.get() is outer
        assert current_block.get() is None

    async_to_sync(main)()


@in_both_homes
@pytest.mark.parametrize("raises", [False, True])
def test_block_left_before_a_nested_one_is_rolled_back_with_it(run: Run, raises: bool) -> None:
    async def main() -> None:
        inside, left = asyncio.Event(), asyncio.Event()

        async def outliving() -> None:
            async with aatomic():
                await create("nested")
                inside.set()
                await left.wait()
                # It must not be written outside of any transaction either.
                with pytest.raises(AtomicBlockError, match="the block around it was left first"):
                    await create("late")

        task: asyncio.Task[None] | None = None

        async def outer() -> None:
            nonlocal task
            async with aatomic():
                await create("outer")
                task = asyncio.create_task(outliving())
                await inside.wait()
                if raises:
                    raise KeyError

        with pytest.raises(
            KeyError if raises else AtomicBlockError, match=None if raises else "inner blocks first"
        ):
            await outer()
        # Others are not concerned.
        await create("other")
        async with aatomic():
            await create("other block")
        left.set()
        assert task is not None
        with pytest.raises(AtomicBlockError, match="the block around it was left first"):
            await task

    run(main)
    assert names() == ["other", "other block"]


@in_both_homes
def test_blocks_left_in_the_wrong_order_are_both_rolled_back(run: Run) -> None:
    async def main() -> None:
        outer, inner = aatomic(), aatomic()
        await outer.__aenter__()
        await inner.__aenter__()
        await create("inner")
        with pytest.raises(AtomicBlockError, match="was left before the one inside it"):
            await outer.__aexit__(None, None, None)
        with pytest.raises(AtomicBlockError, match="was rolled back"):
            await inner.__aexit__(None, None, None)

    run(main)
    assert names() == []


def test_block_left_without_having_been_entered_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(AtomicBlockError, match="without having been entered"):
            await aatomic().__aexit__(None, None, None)

    async_to_sync(main)()


@in_both_homes
@pytest.mark.parametrize("way", ["inherited", "outside"])
def test_block_left_by_another_task_in_the_same_thread_is_committed(run: Run, way: str) -> None:
    """As fixtures do, whose two halves are tasks of their own."""

    async def main() -> None:
        block = aatomic()
        await block.__aenter__()
        await create("inside")
        context = contextvars.copy_context() if way == "inherited" else outside()
        await asyncio.create_task(block.__aexit__(None, None, None), context=context)
        await create("after")

    run(main)
    assert names() == ["after", "inside"]


def test_nested_block_left_in_another_context_is_committed() -> None:
    """Its savepoint is released from where the guard would refuse it."""

    async def main() -> None:
        async with aatomic():
            inner = aatomic()
            await inner.__aenter__()
            await create("inner")
            await asyncio.create_task(inner.__aexit__(None, None, None), context=outside())
            await create("outer")

    async_to_sync(main)()
    assert names() == ["inner", "outer"]


@in_both_homes
def test_async_generator_closed_by_the_loop_is_rolled_back(run: Run) -> None:
    async def rows() -> AsyncIterator[str]:
        async with aatomic():
            await create("row")
            yield "row"

    async def main() -> None:
        generator = rows()
        assert await anext(generator) == "row"
        await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]

    run(main)
    assert names() == []


@pytest.mark.parametrize("error", [None, KeyError()])
def test_block_left_in_another_thread_is_rolled_back_where_it_was_entered(
    error: KeyError | None,
) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            block = aatomic()
            await block.__aenter__()
            await create("inside")
            async with ThreadSensitiveContext(executor=executor):
                if error is None:
                    with pytest.raises(AtomicBlockError, match="was left in another thread"):
                        await block.__aexit__(None, None, None)
                else:
                    await block.__aexit__(type(error), error, None)
                await sync_to_async(close_connections)()
        await sync_to_async(assert_clean)()

    async_to_sync(main)()
    assert names() == []


def test_block_left_after_its_thread_was_given_back_raises() -> None:
    async def main() -> None:
        block = aatomic()
        executor = ThreadPoolExecutor(1)
        async with ThreadSensitiveContext(executor=executor):
            await block.__aenter__()
            guarded = await sync_to_async(lambda: connections["default"])()
        await asyncio.get_running_loop().run_in_executor(executor, end_transaction)
        executor.shutdown()
        with pytest.raises(AtomicBlockError, match="was left in another thread"):
            await block.__aexit__(None, None, None)
        assert not is_guarded(guarded)

    async_to_sync(main)()


def test_block_whose_end_is_dropped_by_its_executor_is_rolled_back() -> None:
    executor = ManualExecutor()

    async def main() -> None:
        async with ThreadSensitiveContext(executor=executor), aatomic():
            await create("inside")

    with hand_driven_loop() as loop:
        task = loop.create_task(main())
        for _ in ("enter", "create"):
            turn(loop, 3)
            executor.run_next()
        turn(loop, 3)
        assert connection.in_atomic_block
        executor.drop_next(RuntimeError("broken"))
        turn(loop, 3)
        executor.run_next()
        turn(loop, 3)
        with pytest.raises(RuntimeError, match="broken"):
            task.result()
    assert_clean()
    assert names() == []


def test_block_given_up_by_both_sides_is_left_once() -> None:
    """A coroutine that is closed while the thread enters: either may come first."""

    async def make() -> Block:
        return Block(None, savepoint=True, durable=False, place="here")

    with transaction.atomic():
        block = async_to_sync(make)()
        block._enter()
        for _ in range(2):
            block._leave(GeneratorExit, None, None)
        assert len(connection.atomic_blocks) == 1
    assert_clean()


def end_transaction() -> None:
    """End this thread's transaction as whoever lends out a thread does."""
    lent = connections["default"]
    lent.connection.rollback()
    lent.in_atomic_block = False
    BaseDatabaseWrapper.close(lent)


@in_both_homes
@pytest.mark.parametrize("raises", [False, True])
def test_transaction_ended_from_outside_refuses_what_is_left_of_the_block(
    run: Run, raises: bool
) -> None:
    async def main() -> None:
        async def block() -> None:
            async with aatomic():
                await create("lost")
                await sync_to_async(transaction.set_rollback)(True)
                await sync_to_async(end_transaction)()
                with pytest.raises(AtomicBlockError, match="was ended before"):
                    await create("outside of any transaction")
                # Others may go on, on the new connection.
                await asyncio.create_task(create("other"), context=outside())
                if raises:
                    raise KeyError

        with pytest.raises(KeyError if raises else AtomicBlockError):
            await block()

    # The database in memory ends with its last connection.
    keep = connection.copy()
    keep.connect()
    try:
        run(main)
        assert names() == ["other"]
    finally:
        BaseDatabaseWrapper.close(keep)


def test_guarded_connection_keeps_its_class_name_wrappers_and_copies() -> None:
    seen: list[str] = []

    def wrapper(execute: Callable[..., Any], *args: Any) -> Any:
        seen.append(args[0])
        return execute(*args)

    def inside() -> None:
        guarded = connections["default"]
        assert is_guarded(guarded)
        assert type(guarded).__name__ == "DatabaseWrapper"
        assert isinstance(guarded.execute_wrappers[0], Guard)
        assert guarded.execute_wrappers[-1] is wrapper
        with guarded.execute_wrapper(wrapper):
            select()
        copy = guarded.copy()
        with pytest.raises(TransactionManagementError, match="outside of an 'atomic' block"):
            copy.set_rollback(True)
        copy.close_if_unusable_or_obsolete()
        copy.needs_rollback = True
        assert copy.needs_rollback
        assert not guarded.needs_rollback

    async def main() -> None:
        async with aatomic():
            await sync_to_async(inside)()

    with connection.execute_wrapper(wrapper):
        async_to_sync(main)()
    assert seen[-2:] == ["SELECT 1", "SELECT 1"]
    assert not is_guarded(connections["default"])
    assert_clean()


def test_guard_whose_list_was_emptied_is_released_all_the_same() -> None:
    def empty_wrappers() -> None:
        connections["default"].execute_wrappers.clear()

    async def main() -> None:
        async with aatomic():
            await sync_to_async(empty_wrappers)()

    async_to_sync(main)()
    assert_clean()
