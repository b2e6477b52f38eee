"""asgiref's wrappers and ours are one bridge: same threads, same connection; and asgiref gets all back that it had."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import asgiref.local
import asgiref.sync
import pytest
from django.contrib.auth.models import User
from django.db import transaction

from django_asyncbridge import interop
from django_asyncbridge.bridge import _mirror, sync
from tests.support import run_in_thread

LIBRARIES: tuple[Any, Any] = (asgiref.sync, sync)


def first_word(library: Any) -> str:
    name: str = library.__name__
    return name.partition(".")[0]


# What wraps each of four crossings, outermost first.
NESTINGS = list(itertools.product(LIBRARIES, repeat=4))
nestings = pytest.mark.parametrize(
    "libraries", NESTINGS, ids=lambda nesting: "-".join(map(first_word, nesting))
)
owners = pytest.mark.parametrize("owner", LIBRARIES, ids=first_word)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave what the app has installed as it was."""
    accelerated = bool(interop._acceleration)
    yield
    interop.uninstall()
    interop.install(accelerated)


@pytest.fixture(params=[False, True], ids=["shared", "accelerated"])
def accelerated(request: pytest.FixtureRequest) -> bool:
    """Run the test on asgiref's own code and on ours."""
    value: bool = request.param
    interop.install(value)
    return value


# --- P1: the table ---------------------------------------------------------------


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
@pytest.mark.usefixtures("accelerated")
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
@pytest.mark.usefixtures("accelerated")
def test_nesting_outside_any_context_runs_all_sync_code_in_the_shared_thread(
    libraries: tuple[Any, ...],
) -> None:
    async def main() -> None:
        idents: list[int] = []
        await async_level(libraries, idents)
        await async_level(libraries[::-1], idents)
        assert len(idents) == 12
        assert {*idents} == {await sync.sync_to_async(threading.get_ident)()}

    asyncio.run(main())


@nestings
@owners
@pytest.mark.usefixtures("accelerated")
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
        assert not threads[0] & threads[1]

    asyncio.run(main())


@nestings
@owners
@pytest.mark.usefixtures("accelerated")
def test_nesting_in_a_context_below_a_sync_caller_runs_all_sync_code_in_the_callers_thread(
    libraries: tuple[Any, ...], owner: Any
) -> None:
    async def in_context(idents: list[int]) -> None:
        async with owner.ThreadSensitiveContext():
            await async_level(libraries, idents)

    def caller() -> set[int]:
        idents: list[int] = []
        libraries[-1].async_to_sync(in_context)(idents)
        return {threading.get_ident(), *idents}

    assert len(run_in_thread(caller)) == 1


@nestings
@pytest.mark.usefixtures("accelerated")
def test_nesting_runs_all_async_code_on_the_outermost_loop(libraries: tuple[Any, ...]) -> None:
    loops: set[asyncio.AbstractEventLoop] = set()

    def sync_code(below: tuple[Any, ...]) -> None:
        below[0].async_to_sync(async_code)(below[1:])

    async def async_code(below: tuple[Any, ...]) -> None:
        loops.add(asyncio.get_running_loop())
        if below:
            await below[0].sync_to_async(sync_code)(below[1:])

    asyncio.run(async_code(libraries))
    assert len(loops) == 1


@pytest.mark.usefixtures("accelerated")
def test_calls_outside_any_context_share_one_thread() -> None:
    async def main() -> None:
        get_ident = [library.sync_to_async(threading.get_ident) for library in LIBRARIES]
        assert len({await call() for call in get_ident * 2}) == 1

    asyncio.run(main())


@pytest.mark.skipif(not hasattr(asgiref.sync, "AsyncSingleThreadContext"), reason="absent there")
@owners
@pytest.mark.parametrize("order", [LIBRARIES, LIBRARIES[::-1]], ids=lambda one: first_word(one[0]))
def test_single_thread_context_runs_the_coroutines_of_both_in_one_thread(
    owner: Any, order: tuple[Any, Any], accelerated: bool
) -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    async def note() -> int:
        loops.append(asyncio.get_running_loop())
        return threading.get_ident()

    def caller() -> set[int]:
        with owner.AsyncSingleThreadContext() as context, context, owner.AsyncSingleThreadContext():
            return {library.async_to_sync(note)() for library in order * 2}

    # In our contexts asgiref's own code brings a thread that we do not know.
    if accelerated or owner is not sync:
        assert len(run_in_thread(caller)) == 1
        assert all(loop.is_closed() for loop in loops)
        assert len({*loops}) == (1 if accelerated else 3)


@pytest.mark.skipif(not hasattr(asgiref.sync, "AsyncSingleThreadContext"), reason="absent there")
@pytest.mark.usefixtures("accelerated")
def test_single_thread_context_of_asgirefs_takes_our_calls() -> None:
    async def get_ident() -> int:
        return threading.get_ident()

    def caller() -> set[int]:
        with LIBRARIES[0].AsyncSingleThreadContext():
            return {sync.async_to_sync(get_ident)() for _ in range(3)}

    idents = run_in_thread(caller)
    assert len(idents) == 1


# --- Transactions ----------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("accelerated")
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
@pytest.mark.usefixtures("accelerated")
def test_async_orm_below_async_to_sync_sees_the_test_transaction() -> None:
    async def count() -> int:
        return await User.objects.acount()

    User.objects.create(username="of the test")
    assert sync.async_to_sync(count)() == 1


# --- Sharing and giving back -----------------------------------------------------

TOUCHED: list[Any] = [
    asgiref.sync,
    asgiref.local,
    *(
        value
        for module in (asgiref.sync, asgiref.local)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.startswith("asgiref.")
    ),
]


def attributes() -> list[dict[str, Any]]:
    return [dict(vars(one)) for one in TOUCHED]


@pytest.mark.parametrize(
    "steps",
    [
        (interop.share_registries, interop.unshare_registries),
        (interop.accelerate, interop.unshare_registries),
        (interop.accelerate, interop.decelerate, interop.unshare_registries),
        (interop.accelerate, interop.unshare_registries, interop.decelerate),
        (interop.share_registries, interop.accelerate, interop.uninstall),
        (interop.accelerate, interop.accelerate, interop.share_registries, interop.uninstall),
        (lambda: interop.install(True), lambda: interop.install(False), interop.uninstall),
        (lambda: interop.install(False), lambda: interop.install(True), interop.uninstall),
        (interop.uninstall, interop.decelerate),
    ],
)
def test_undoing_gives_asgiref_back_exactly_what_it_had(
    steps: tuple[Callable[[], None], ...],
) -> None:
    interop.uninstall()
    original = attributes()
    for step in steps:
        step()
    assert attributes() == original
    assert _mirror._arrival_hook is None


def test_decelerating_leaves_what_sharing_had_put_there() -> None:
    interop.uninstall()
    interop.share_registries()
    shared = attributes()
    interop.accelerate()
    assert attributes() != shared
    interop.decelerate()
    assert attributes() == shared


def test_installing_again_changes_nothing(accelerated: bool) -> None:
    installed = attributes()
    interop.install(accelerated)
    assert attributes() == installed


async def aget_ident() -> int:
    return threading.get_ident()


def test_registries_are_given_back_and_shared_again() -> None:
    shared: Any = sync.AsyncToSync.executors
    interop.unshare_registries()
    assert asgiref.sync.AsyncToSync.executors is not shared
    assert vars(asgiref.sync)["CurrentThreadExecutor"].__module__.startswith("asgiref.")
    # In a thread that asgiref starts.
    assert asgiref.sync.async_to_sync(aget_ident)() != threading.get_ident()
    interop.share_registries()
    interop.share_registries()
    assert asgiref.sync.AsyncToSync.executors is shared


@pytest.mark.parametrize("accelerate", [False, True])
def test_wrappers_made_before_sharing_take_part(accelerate: bool) -> None:
    interop.uninstall()
    call: Callable[[], Coroutine[Any, Any, int]] = asgiref.sync.sync_to_async(threading.get_ident)
    interop.install(accelerate)

    async def main() -> None:
        assert await call() == await sync.sync_to_async(threading.get_ident)()

    asyncio.run(main())


@pytest.mark.usefixtures("accelerated")
def test_asgirefs_worker_forgets_the_loop_it_worked_for() -> None:
    """C03, for Django's own calls: the thread's next `async_to_sync` would go to a loop long closed."""
    read = sync.SyncToAsync.threadlocal

    async def main() -> None:
        await asgiref.sync.sync_to_async(threading.get_ident)()

    def caller() -> object:
        sync.async_to_sync(main)()
        return getattr(read, "main_event_loop", None)

    assert run_in_thread(caller) is None
