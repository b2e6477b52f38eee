"""asgiref's wrappers and ours are one bridge: same threads, same connection, same language."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import asgiref.sync
import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import translation

from django_asyncbridge import interop
from django_asyncbridge.bridge import sync
from tests.support import run_in_thread

LIBRARIES: tuple[Any, Any] = (asgiref.sync, sync)
# What wraps each of four crossings, outermost first.
NESTINGS = list(itertools.product(LIBRARIES, repeat=4))
nestings = pytest.mark.parametrize(
    "libraries",
    NESTINGS,
    ids=lambda nesting: "-".join(one.__name__.split(".")[0] for one in nesting),
)


def sync_level(libraries: tuple[Any, ...], idents: list[int]) -> None:
    """Note the thread, and cross into async code by the first library."""
    idents.append(threading.get_ident())
    if libraries:
        libraries[0].async_to_sync(async_level)(libraries[1:], idents)


async def async_level(libraries: tuple[Any, ...], idents: list[int]) -> None:
    """Cross into sync code by the first library, also from a task that was started here."""
    if libraries:
        call = libraries[0].sync_to_async(sync_level)
        await call(libraries[1:], idents)
        await asyncio.create_task(call(libraries[1:], idents))


@nestings
def test_nesting_below_a_sync_caller_runs_all_sync_code_in_its_thread(
    libraries: tuple[Any, ...],
) -> None:
    """P1: the caller is home, whoever crosses."""

    def caller() -> set[int]:
        idents: list[int] = []
        sync_level(libraries, idents)
        assert len(idents) == 7
        return {threading.get_ident(), *idents}

    assert len(run_in_thread(caller)) == 1


@nestings
@pytest.mark.parametrize("owner", LIBRARIES, ids=lambda library: library.__name__.split(".")[0])
def test_nesting_in_a_context_runs_all_sync_code_in_its_thread(
    libraries: tuple[Any, ...], owner: Any
) -> None:
    """P1: the context's thread is home, whoever made the context and whoever crosses."""

    async def in_context() -> set[int]:
        idents: list[int] = []
        async with owner.ThreadSensitiveContext():
            await async_level(libraries, idents)
            await async_level(libraries[::-1], idents)
        return set(idents)

    async def main() -> None:
        threads = await asyncio.gather(in_context(), in_context())
        assert [len(idents) for idents in threads] == [1, 1]

    asyncio.run(main())


def test_calls_outside_any_context_share_one_thread() -> None:
    async def main() -> None:
        get_ident = [library.sync_to_async(threading.get_ident) for library in LIBRARIES]
        assert len({await call() for call in get_ident * 2}) == 1

    asyncio.run(main())


@pytest.mark.django_db(transaction=True)
def test_async_orm_below_async_to_sync_is_in_the_callers_transaction() -> None:
    async def create() -> int:
        await User.objects.acreate(username="inner")
        return await User.objects.acount()

    def in_transaction() -> None:
        with transaction.atomic():
            User.objects.create(username="outer")
            assert sync.async_to_sync(create)() == 2
            raise KeyError

    with pytest.raises(KeyError):
        in_transaction()
    assert User.objects.count() == 0


@pytest.mark.django_db
def test_async_orm_below_async_to_sync_sees_the_test_transaction() -> None:
    async def count() -> int:
        return await User.objects.acount()

    User.objects.create(username="of the test")
    assert sync.async_to_sync(count)() == 1


@pytest.fixture
def english() -> Iterator[None]:
    """Have the test begin and end in English."""
    with translation.override("en"):
        yield


@pytest.mark.usefixtures("english")
def test_language_crosses_both_ways_and_changes_come_back() -> None:
    """asgiref stamps its Local's values with a thread; our crossings bring them along."""

    async def among_tasks() -> list[str | None]:
        translation.activate("de")
        seen = [await sync.sync_to_async(translation.get_language)()]
        await sync.sync_to_async(translation.activate)("fr")
        return [*seen, translation.get_language()]

    async def main() -> list[str | None]:
        seen = await among_tasks()
        return [*seen, await sync.sync_to_async(sync.async_to_sync(aget_language))()]

    assert asyncio.run(main()) == ["de", "fr", "fr"]
    assert sync.async_to_sync(main)() == ["de", "fr", "fr"]
    assert translation.get_language() == "fr"


async def aget_language() -> str | None:
    """Return the active language in async code."""
    return translation.get_language()


def test_registries_are_given_back_and_shared_again() -> None:
    shared: Any = sync.AsyncToSync.executors
    interop.unshare_registries()
    try:
        assert asgiref.sync.AsyncToSync.executors is not shared
        assert vars(asgiref.sync)["CurrentThreadExecutor"].__module__.startswith("asgiref.")
        assert asgiref.sync.async_to_sync(aget_language)() == translation.get_language()
    finally:
        interop.share_registries()
    interop.share_registries()
    assert asgiref.sync.AsyncToSync.executors is shared


def test_wrappers_made_before_sharing_take_part() -> None:
    interop.unshare_registries()
    call: Callable[[], Coroutine[Any, Any, int]] = asgiref.sync.sync_to_async(threading.get_ident)
    interop.share_registries()

    async def main() -> None:
        assert await call() == await sync.sync_to_async(threading.get_ident)()

    asyncio.run(main())


def test_asgirefs_worker_forgets_the_loop_it_worked_for() -> None:
    """C03, for Django's own calls: the thread's next `async_to_sync` would go to a loop long closed."""
    read = sync.SyncToAsync.threadlocal

    async def main() -> None:
        await asgiref.sync.sync_to_async(threading.get_ident)()

    def caller() -> object:
        sync.async_to_sync(main)()
        return getattr(read, "main_event_loop", None)

    assert run_in_thread(caller) is None
