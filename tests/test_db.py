"""`aatomic` where nothing goes wrong, and the other helpers: for both sides, for Channels, for handlers."""

import asyncio
import contextlib
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.test import TestCase
from django.utils.connection import ConnectionDoesNotExist

from django_asyncbridge.bridge.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django_asyncbridge.db import (
    DatabaseSyncToAsync,
    aatomic,
    atomic_request_view,
    database_sync_to_async,
    sync_or_async,
)
from testproject.guestbook.models import Entry
from tests.bridge import LIMIT_SECONDS, Tracked, without_gc
from tests.db_support import Run, close_connections, create, in_both_homes, names, turns

transactional = pytest.mark.django_db(transaction=True)


async def in_atomic_block() -> bool:
    """Tell whether the home thread is in a transaction."""
    return await sync_to_async(lambda: connection.in_atomic_block)()


# --- aatomic as a context manager --------------------------------------------


@transactional
@in_both_homes
def test_aatomic_commits_at_the_end(run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            await create("inside")
            assert await in_atomic_block()
        assert not await in_atomic_block()

    run(main)
    assert names() == ["inside"]


@transactional
@in_both_homes
def test_aatomic_rolls_back_on_an_exception(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(KeyError):  # noqa: PT012  # the block is what raises
            async with aatomic():
                await create("inside")
                raise KeyError
        assert not await in_atomic_block()

    run(main)
    assert names() == []


@transactional
@in_both_homes
def test_aatomic_nested_rolls_back_to_its_savepoint(run: Run) -> None:
    async def main() -> None:
        async with aatomic():
            await create("outer")
            for name in ("good", "bad"):
                with pytest.raises(KeyError, match=name):  # noqa: PT012  # the block is what raises
                    async with aatomic():
                        async with aatomic():
                            await create(name)
                        if name == "bad":
                            raise KeyError(name)
                    raise KeyError(name)
            await create("outer again")

    run(main)
    assert names() == ["good", "outer", "outer again"]


@transactional
def test_aatomic_without_savepoint_takes_the_outer_block_with_it() -> None:
    async def main() -> None:
        async with aatomic():
            await create("outer")
            with pytest.raises(KeyError):
                async with aatomic(savepoint=False):
                    raise KeyError
            with pytest.raises(transaction.TransactionManagementError):
                await create("outer again")

    async_to_sync(main)()
    assert names() == []


@transactional
def test_aatomic_durable_is_refused_inside_another_and_taken_alone() -> None:
    async def main() -> None:
        async with aatomic(durable=True):
            await create("alone")
            with pytest.raises(RuntimeError, match="durable"):
                await aatomic(durable=True).__aenter__()
        await create("after")

    async_to_sync(main)()
    assert names() == ["after", "alone"]


def test_aatomic_with_an_unknown_alias_is_djangos_error() -> None:
    async def main() -> None:
        with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
            await aatomic(using="nowhere").__aenter__()

    async_to_sync(main)()


@transactional
@in_both_homes
def test_aatomic_raises_what_the_commit_raises(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(IntegrityError):  # noqa: PT012  # the block is what raises
            async with aatomic():
                # Checked when the transaction ends.
                await Entry.objects.acreate(author_id=0, text="of nobody")
                assert await Entry.objects.acount() == 1

    run(main)
    assert Entry.objects.count() == 0


@transactional
@in_both_homes
def test_aatomic_tasks_started_inside_are_in_the_transaction(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(KeyError):  # noqa: PT012  # the block is what raises
            async with aatomic():
                await asyncio.gather(*(create(str(number)) for number in range(5)))
                assert await User.objects.acount() == 5
                raise KeyError

    run(main)
    assert names() == []


@transactional
@in_both_homes
def test_aatomic_sync_functions_inside_may_use_atomic(run: Run) -> None:
    @transaction.atomic
    def helper(name: str) -> None:
        User.objects.create(username=name)
        if name == "bad":
            raise KeyError

    async def main() -> None:
        async with aatomic():
            await sync_to_async(helper)("good")
            with pytest.raises(KeyError):
                await sync_to_async(helper)("bad")

    run(main)
    assert names() == ["good"]


@transactional
@in_both_homes
def test_aatomic_below_sync_code_that_is_in_a_block(run: Run) -> None:
    """Async, sync, async: one thread, one transaction, a savepoint for each."""

    async def innermost() -> None:
        async with aatomic():
            await create("innermost")

    def middle() -> None:
        with transaction.atomic():
            async_to_sync(innermost)()
            assert len(connection.savepoint_ids) == 1

    async def main() -> None:
        async with aatomic():
            await sync_to_async(middle)()
            await create("outer")

    run(main)
    assert names() == ["innermost", "outer"]


@transactional
def test_aatomic_in_a_sync_callers_block_is_rolled_back_with_it() -> None:
    def caller() -> None:
        with transaction.atomic():
            async_to_sync(aatomic(create))("inside")
            raise KeyError

    with pytest.raises(KeyError):
        caller()
    assert names() == []


@transactional
def test_aatomic_work_that_is_not_thread_sensitive_is_not_in_the_transaction() -> None:
    def look() -> bool:
        try:
            return connection.in_atomic_block
        finally:
            close_connections()

    async def main() -> None:
        async with aatomic():
            assert await in_atomic_block()
            assert not await sync_to_async(look, thread_sensitive=False)()

    async_to_sync(main)()


@transactional
@in_both_homes
def test_aatomic_on_commit_runs_in_the_home_thread_after_the_commit(run: Run) -> None:
    ran: list[tuple[str, int, bool]] = []

    def register(name: str) -> None:
        transaction.on_commit(
            lambda: ran.append((name, threading.get_ident(), connection.in_atomic_block))
        )

    async def block(name: str) -> None:
        async with aatomic():
            await sync_to_async(register)(name)
            async with aatomic():
                await sync_to_async(register)(f"{name}, nested")
            assert ran == []
            if name == "bad":
                raise KeyError

    async def main() -> None:
        with pytest.raises(KeyError):
            await block("bad")
        await block("good")
        home = await sync_to_async(threading.get_ident)()
        assert ran == [("good", home, False), ("good, nested", home, False)]

    run(main)


@transactional
def test_aatomic_callback_on_commit_may_use_aatomic() -> None:
    async def main() -> None:
        async with aatomic():
            await sync_to_async(transaction.on_commit)(
                lambda: async_to_sync(aatomic(create))("from the callback")
            )

    async_to_sync(main)()
    assert names() == ["from the callback"]


@transactional
def test_aatomic_object_can_be_entered_again_and_inside_itself() -> None:
    async def main() -> None:
        block = aatomic()
        for name in ("first", "second"):
            async with block:
                await create(name)
                with pytest.raises(KeyError):  # noqa: PT012  # the block is what raises
                    async with block:
                        await create("nested")
                        raise KeyError

    async_to_sync(main)()
    assert names() == ["first", "second"]


@pytest.mark.parametrize("nested", [False, True])
@transactional
def test_aatomic_error_is_freed_without_the_garbage_collector(nested: bool) -> None:
    """P7."""

    async def block() -> None:
        async with aatomic():
            tracked = Tracked()
            left.append(weakref.ref(tracked))
            raise KeyError

    async def main() -> None:
        if nested:
            async with aatomic():
                with contextlib.suppress(KeyError):
                    await block()
        else:
            with contextlib.suppress(KeyError):
                await block()

    left: list[weakref.ref[Tracked]] = []
    with without_gc():
        async_to_sync(main)()
        assert left[0]() is None


class AtomicInTestCase(TestCase):
    """In Django's own test case, whose transaction is around each test."""

    async def test_aatomic_in_a_test_case_is_a_savepoint(self) -> None:
        """The test's transaction goes on, and takes a durable block for the outermost."""
        await create("of the test")
        with pytest.raises(KeyError):  # noqa: PT012  # the block is what raises
            async with aatomic(durable=True):
                await create("inside")
                raise KeyError
        async with aatomic():
            await create("inside")
        assert await User.objects.acount() == 2
        assert await in_atomic_block()

    async def test_aatomic_of_another_test_has_left_nothing(self) -> None:
        """The other test's work is gone."""
        async with aatomic():
            assert not await User.objects.aexists()


@pytest.mark.django_db
def test_aatomic_below_the_db_fixture_is_a_savepoint() -> None:
    User.objects.create(username="of the test")
    async_to_sync(aatomic(create))("inside")
    assert names() == ["inside", "of the test"]
    assert connection.in_atomic_block


# --- aatomic as a decorator --------------------------------------------------


@transactional
@in_both_homes
def test_aatomic_decorates_with_and_without_parentheses(run: Run) -> None:
    @aatomic
    async def plain(name: str) -> str:
        """Write it."""
        await create(name)
        assert await in_atomic_block()
        return name

    @aatomic(savepoint=False)
    async def failing(name: str) -> None:
        await create(name)
        raise KeyError

    async def main() -> None:
        assert await plain("plain") == "plain"
        with pytest.raises(KeyError):
            await failing("failing")

    assert plain.__name__ == "plain"
    assert plain.__doc__ == "Write it."
    assert iscoroutinefunction(plain)
    assert list(inspect.signature(plain).parameters) == ["name"]
    run(main)
    assert names() == ["plain"]


@transactional
def test_aatomic_decorated_function_can_run_in_several_threads_at_once() -> None:
    both = threading.Barrier(2, timeout=LIMIT_SECONDS)

    @aatomic
    async def block() -> None:
        await sync_to_async(both.wait)()

    def one() -> None:
        connection.ensure_connection()
        # On SQLite: one writes after the other, but neither writes.
        connections["default"].transaction_mode = None  # type: ignore[attr-defined]
        try:
            async_to_sync(block)()
        finally:
            close_connections()

    with ThreadPoolExecutor(2) as executor:
        for future in [executor.submit(one) for _ in range(2)]:
            future.result()


def test_aatomic_on_a_sync_function_says_what_to_use() -> None:
    def helper() -> None:
        raise AssertionError

    for decorate in (aatomic, aatomic()):
        with pytest.raises(TypeError, match=r"helper is none; .*django.db.transaction.atomic"):
            decorate(helper)  # type: ignore[type-var]


def test_aatomic_on_an_async_generator_function_says_what_to_do() -> None:
    async def rows() -> AsyncIterator[int]:
        yield 1

    async def main() -> None:
        assert [row async for row in rows()] == [1]

    with pytest.raises(TypeError, match="write 'async with aatomic"):
        aatomic(rows)  # type: ignore[type-var]
    async_to_sync(main)()


def test_aatomic_in_a_plain_with_says_what_to_write() -> None:
    with pytest.raises(TypeError, match="async with aatomic"), aatomic():
        raise AssertionError


# --- database_sync_to_async --------------------------------------------------


class Looked:
    """Stands for a connection and counts how often it was looked at."""

    in_atomic_block = False
    allow_thread_sharing = False

    def __init__(self) -> None:
        self.times = 0

    def close_if_unusable_or_obsolete(self) -> None:
        self.times += 1


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch) -> Looked:
    """Be the only connection."""
    looked = Looked()
    monkeypatch.setattr(type(connections), "all", lambda self, initialized_only: [looked])
    return looked


def fail() -> None:
    """Raise."""
    raise KeyError


def test_database_sync_to_async_looks_at_connections_before_and_after(looked: Looked) -> None:
    @database_sync_to_async
    def decorated(self: object, number: int) -> tuple[int, int]:
        """Be looked at."""
        return number, looked.times

    class Consumer:
        method = decorated

    async def main() -> None:
        assert await decorated(None, 1) == (1, 1)
        assert looked.times == 2
        assert await Consumer().method(2) == (2, 3)
        with pytest.raises(KeyError):
            await database_sync_to_async(fail)()
        assert looked.times == 6

    assert isinstance(decorated, DatabaseSyncToAsync)
    assert decorated.__doc__ == "Be looked at."
    assert iscoroutinefunction(decorated)
    async_to_sync(main)()


@pytest.mark.parametrize("attribute", ["in_atomic_block", "allow_thread_sharing"])
def test_database_sync_to_async_leaves_transactions_and_shared_connections_alone(
    looked: Looked, attribute: str
) -> None:
    setattr(looked, attribute, True)

    async def main() -> None:
        await database_sync_to_async(lambda: None)()

    async_to_sync(main)()
    assert looked.times == 0


@transactional
@in_both_homes
def test_database_sync_to_async_inside_a_block_is_part_of_it(run: Run) -> None:
    """Django's own check would close the connection, as autocommit is off."""

    async def main() -> None:
        async with aatomic():
            await create("inside")
            assert await database_sync_to_async(User.objects.count)() == 1
            await create("inside too")

    run(main)
    assert names() == ["inside", "inside too"]


@transactional
def test_database_sync_to_async_closes_an_old_connection() -> None:
    @database_sync_to_async(thread_sensitive=False, executor=(executor := ThreadPoolExecutor(1)))
    def driver() -> Any:
        connection.ensure_connection()
        connection.close_at = 0
        return connections["default"]

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch, executor:
            used = await driver()
            patch.setattr(type(used), "close", BaseDatabaseWrapper.close)
            # It ended for a database in memory, which is not closed then; but for this.
            executor.submit(close_connections).result()
            assert used.connection is None

    async_to_sync(main)()


# --- sync_or_async -----------------------------------------------------------


@sync_or_async
def where(name: str = "nobody") -> tuple[str, int]:
    """Tell the thread."""
    return name, threading.get_ident()


class Shelf:
    """Has methods for both sides."""

    name = "shelf"

    @sync_or_async
    def own_name(self, suffix: str) -> str:
        """Return the name."""
        return self.name + suffix

    @classmethod
    @sync_or_async
    def class_name(cls) -> str:
        """Return the name of the class."""
        return cls.__name__

    @sync_or_async
    @staticmethod
    def static(value: int) -> int:
        """Return it."""
        return value


@pytest.mark.django_db
def test_sync_or_async_in_sync_code_runs_at_once() -> None:
    assert where("sync") == ("sync", threading.get_ident())
    assert where.sync() == ("nobody", threading.get_ident())


@pytest.mark.django_db
def test_sync_or_async_on_a_loop_runs_in_the_home_thread() -> None:
    async def main() -> None:
        home = await sync_to_async(threading.get_ident)()
        for call in (where, where.asynchronous):
            assert await call("async") == ("async", home)
        assert home != threading.get_ident()
        # Below, in the thread, it is sync code again.
        assert await sync_to_async(where)("below") == ("below", home)

    asyncio.run(main())


@pytest.mark.django_db
def test_sync_or_async_methods_are_bound() -> None:
    async def main() -> None:
        assert await Shelf().own_name(" async") == "shelf async"
        assert await Shelf().own_name.asynchronous(" async") == "shelf async"
        assert await Shelf.class_name() == "Shelf"  # type: ignore[call-arg]
        assert await Shelf().static(2) == 2  # type: ignore[call-arg]

    assert Shelf().own_name(" sync") == "shelf sync"
    assert Shelf().own_name.sync(" sync") == "shelf sync"
    assert Shelf.own_name(Shelf(), " sync") == "shelf sync"
    assert Shelf.class_name() == Shelf().class_name() == "Shelf"  # type: ignore[call-arg]
    assert Shelf().static(1) == 1  # type: ignore[call-arg]
    async_to_sync(main)()


def test_sync_or_async_looks_like_the_function() -> None:
    assert where.__name__ == "where"
    assert where.__doc__ == "Tell the thread."
    assert where.__wrapped__ is where.sync
    assert str(inspect.signature(where)) == "(name: str = 'nobody') -> tuple[str, int]"
    assert Shelf().own_name.__name__ == "own_name"
    assert list(inspect.signature(Shelf().own_name).parameters) == ["suffix"]
    assert not iscoroutinefunction(where)


def test_sync_or_async_refuses_what_is_async_already() -> None:
    with pytest.raises(TypeError, match="create is a coroutine function"):
        sync_or_async(create)


@transactional
@in_both_homes
def test_sync_or_async_is_part_of_the_block_on_both_sides(run: Run) -> None:
    @sync_or_async
    def write(name: str) -> None:
        User.objects.create(username=name)

    async def main() -> None:
        async with aatomic():
            await write("async")
            await sync_to_async(write)("sync")
            await create("other")

    run(main)
    assert names() == ["async", "other", "sync"]


# --- atomic_request_view -----------------------------------------------------


@pytest.fixture
def atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ``ATOMIC_REQUESTS`` set."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)


async def view(request: HttpRequest) -> HttpResponse:
    """Tell whether there is a transaction."""
    return HttpResponse(str(await in_atomic_block()))


view.csrf_exempt = True  # type: ignore[attr-defined]


async def respond(handler: Callable[..., Any]) -> str:
    """Return what a view says."""
    response: HttpResponse = await handler(HttpRequest())
    return response.content.decode()


def test_atomic_request_view_without_the_setting_is_the_view() -> None:
    assert atomic_request_view(view) is view


@transactional
@in_both_homes
@pytest.mark.usefixtures("atomic_requests")
def test_atomic_request_view_runs_the_view_in_a_transaction(run: Run) -> None:
    async def main() -> None:
        assert await respond(view) == "False"
        assert await respond(wrapped) == "True"

    wrapped = atomic_request_view(view)
    assert iscoroutinefunction(wrapped)
    assert wrapped.csrf_exempt  # type: ignore[attr-defined]
    assert wrapped.__name__ == "view"
    run(main)


@transactional
@in_both_homes
@pytest.mark.usefixtures("atomic_requests")
def test_atomic_request_view_that_raises_is_rolled_back(run: Run) -> None:
    async def raising(request: HttpRequest) -> HttpResponse:
        await create("in the request")
        await turns()
        raise KeyError

    async def main() -> None:
        with pytest.raises(KeyError):
            await respond(atomic_request_view(raising))

    run(main)
    assert names() == []


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.parametrize(("using", "same"), [(None, True), ("default", True), ("another", False)])
def test_atomic_request_view_heeds_non_atomic_requests(using: str | None, same: bool) -> None:
    @transaction.non_atomic_requests(using=using)
    async def exempt(request: HttpRequest) -> HttpResponse:
        raise AssertionError

    assert (atomic_request_view(exempt) is exempt) is same


@pytest.mark.usefixtures("atomic_requests")
def test_atomic_request_view_refuses_a_sync_view() -> None:
    def sync_view(request: HttpRequest) -> HttpResponse:
        raise AssertionError

    with pytest.raises(TypeError, match="sync_view"):
        atomic_request_view(sync_view)  # type: ignore[type-var]
