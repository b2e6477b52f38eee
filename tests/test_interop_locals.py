"""asgiref's `Local`: what Django keeps there survives every crossing, and reaches nobody else."""

import asyncio
import contextvars
import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import asgiref.local
import asgiref.sync
import pytest
from django.urls import get_script_prefix, get_urlconf, set_script_prefix, set_urlconf
from django.utils import timezone, translation

from django_asyncbridge import _interop_locals, interop
from django_asyncbridge.bridge import _mirror, sync
from tests.support import run_in_thread

LIBRARIES: tuple[Any, Any] = (asgiref.sync, sync)
libraries_one_by_one = pytest.mark.parametrize("library", LIBRARIES, ids=["asgiref", "ours"])
stamped = pytest.mark.skipif(
    not hasattr(asgiref.local, "_Storage"), reason="this asgiref stamps nothing"
)
Values = tuple[str | None, str, str | None, str]


def read() -> Values:
    """Return what Django keeps for each request."""
    return (
        translation.get_language(),
        timezone.get_current_timezone_name(),
        get_urlconf(),
        get_script_prefix(),
    )


async def aread() -> Values:
    return read()


VALUES: list[Values] = [
    ("de", "Europe/Berlin", "urls.de", "/de/"),
    ("fr", "Europe/Paris", "urls.fr", "/fr/"),
    ("ja", "Asia/Tokyo", "urls.ja", "/ja/"),
    ("en", "UTC", "urls.en", "/en/"),
    ("pt", "Europe/Lisbon", "urls.pt", "/pt/"),
]


def change(values: Values) -> None:
    language, zone, urlconf, prefix = values
    assert language is not None
    translation.activate(language)
    timezone.activate(zone)
    set_urlconf(urlconf)
    set_script_prefix(prefix)


@pytest.fixture(autouse=True, params=[False, True], ids=["shared", "accelerated"])
def installed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run each test on asgiref's own code and on ours, and leave what the app has installed as it was."""
    accelerated = bool(interop._acceleration)
    interop.install(request.param)
    yield
    interop.uninstall()
    interop.install(accelerated)


def in_context_of_its_own(function: Callable[[], None]) -> None:
    """Call `function` now, such that none of Django's values is set before and all are gone afterwards."""
    contextvars.Context().run(function)


nestings = pytest.mark.parametrize(
    "libraries",
    list(itertools.product(LIBRARIES, repeat=4)),
    ids=lambda nesting: "-".join(library.__name__.partition(".")[0] for library in nesting),
)


def check_sync(libraries: tuple[Any, ...], above: Values, values: list[Values]) -> None:
    """Find what the level above has, leave something else, and find below what that level has left."""
    assert read() == above
    change(values[0])
    if libraries:
        libraries[0].async_to_sync(check_async)(libraries[1:], values[0], values[1:])
        assert read() == values[1]
        change(values[0])


async def check_async(libraries: tuple[Any, ...], above: Values, values: list[Values]) -> None:
    assert read() == above
    change(values[0])
    if libraries:
        task = asyncio.create_task(aread())
        call = libraries[0].sync_to_async(check_sync)
        await call(libraries[1:], values[0], values[1:])
        assert read() == values[1]
        change(values[0])
        # It has what was here when it was started; what was changed afterwards does not concern it.
        assert await task == values[0]


@nestings
def test_values_travel_down_and_up_through_every_nesting_below_a_sync_caller(
    libraries: tuple[Any, ...],
) -> None:
    """P3."""

    def caller() -> None:
        change(VALUES[-1])
        check_sync(libraries, VALUES[-1], VALUES)
        assert read() == VALUES[0]

    run_in_thread(caller)


@nestings
@pytest.mark.parametrize("owner", [None, *LIBRARIES], ids=["none", "asgiref", "ours"])
def test_values_travel_down_and_up_through_every_nesting_below_a_task(
    libraries: tuple[Any, ...], owner: Any
) -> None:
    """P3: in and outside of contexts."""

    async def main() -> None:
        change(VALUES[-1])
        if owner is None:
            await check_async(libraries, VALUES[-1], VALUES)
            return
        async with owner.ThreadSensitiveContext():
            await check_async(libraries, VALUES[-1], VALUES)

    in_context_of_its_own(lambda: asyncio.run(main()))


@libraries_one_by_one
def test_values_of_tasks_at_the_same_time_stay_apart(library: Any) -> None:
    """P2: though all use the same threads."""

    async def request(values: Values, others: Values) -> None:
        async with library.ThreadSensitiveContext():
            assert read()[0] == "en-us"
            await library.sync_to_async(change)(values)
            for _ in range(10):
                assert read() == values
                assert await library.sync_to_async(read)() == values
                assert await library.sync_to_async(library.async_to_sync(aread))() == values
                await asyncio.sleep(0)
            await library.sync_to_async(change)(others)
            assert read() == others

    async def main() -> None:
        before = read()
        await asyncio.gather(
            *(request(*pair) for pair in itertools.permutations(VALUES, 2)),
        )
        assert read() == before
        assert await library.sync_to_async(read)() == before

    in_context_of_its_own(lambda: asyncio.run(main()))


@libraries_one_by_one
def test_values_do_not_stay_in_the_threads_that_had_them(library: Any) -> None:
    seen: list[Values] = []

    async def main() -> None:
        change(VALUES[0])
        await library.sync_to_async(change, thread_sensitive=False)(VALUES[1])
        await asyncio.to_thread(contextvars.Context().run, lambda: seen.append(read()))

    before = run_in_thread(read)
    in_context_of_its_own(lambda: asyncio.run(main()))
    assert run_in_thread(lambda: contextvars.Context().run(read)) == before
    assert seen == [before]


@stamped
def test_values_are_not_seen_by_a_thread_that_merely_inherited_the_context() -> None:
    """asgiref's rule: only who crosses takes values along."""

    @in_context_of_its_own
    def test() -> None:
        change(VALUES[0])
        context = contextvars.copy_context()
        assert run_in_thread(lambda: context.run(translation.get_language)) == "en-us"
        assert translation.get_language() == "de"


def test_values_of_tasks_follow_a_loop_that_moves_to_another_thread() -> None:
    """The loop starts in the caller's thread, and leaves it when the caller has to work."""

    async def reading(moved: asyncio.Event) -> tuple[int, Values, Values]:
        change(VALUES[0])
        await moved.wait()
        first = read()
        timezone.activate("Asia/Tokyo")
        return threading.get_ident(), first, read()

    async def main() -> None:
        moved = asyncio.Event()
        task = asyncio.create_task(reading(moved))
        await asyncio.sleep(0)
        before = threading.get_ident()
        assert await sync.sync_to_async(threading.get_ident)() == before
        moved.set()
        after, first, second = await task
        assert after == threading.get_ident() != before
        assert first == VALUES[0]
        assert second == ("de", "Asia/Tokyo", "urls.de", "/de/")

    run_in_thread(sync.async_to_sync(main))


@libraries_one_by_one
def test_value_of_a_local_made_later_travels(library: Any) -> None:
    local: Any = asgiref.local.Local()

    def change_it() -> None:
        local.value += " and back"

    async def main() -> None:
        local.value = "there"
        await library.sync_to_async(change_it)()
        assert local.value == "there and back"
        del local.value
        assert await library.sync_to_async(lambda: hasattr(local, "value"))() is False

    asyncio.run(main())


@libraries_one_by_one
def test_token_made_in_one_call_resets_in_the_next_beside_values(library: Any) -> None:
    """P3, where the context is kept from call to call."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def main() -> None:
        variable.set("before")
        translation.activate("de")
        if library is sync:
            token = await sync.sync_to_async(variable.set)("set")
            await sync.sync_to_async(translation.activate)("fr")
            assert (variable.get(), translation.get_language()) == ("set", "fr")
            await sync.sync_to_async(variable.reset)(token)
        assert variable.get() == "before"
        assert await library.sync_to_async(translation.get_language)() != "en-us"

    in_context_of_its_own(lambda: asyncio.run(main()))


# --- What we know of asgiref's variables -----------------------------------------


class Value:
    def __init__(self, thread_id: int, data: Any) -> None:
        self.thread_id = thread_id
        self.data = data


class Holder:
    def __init__(self) -> None:
        self._data: contextvars.ContextVar[Value] = contextvars.ContextVar("holder")


def new_stamps() -> _interop_locals.ThreadStamps:
    return _interop_locals.ThreadStamps(Holder, Value)


def test_stamps_find_the_holders_that_exist_and_have_their_variable() -> None:
    holders = [Holder(), Holder()]
    unfinished = Holder.__new__(Holder)
    stamps = new_stamps()
    stamps.find()
    assert {*stamps._variables} == {holder._data for holder in holders}
    assert not hasattr(unfinished, "_data")


def test_stamps_forget_the_variables_of_holders_that_have_gone() -> None:
    stamps = new_stamps()
    noting = stamps.noting(Holder.__init__)
    first, second = Holder.__new__(Holder), Holder.__new__(Holder)
    noting(first)
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    noting(second)
    assert stamps._variables == (second._data,)


def test_stamps_concern_only_contexts_that_have_a_value() -> None:
    stamps = new_stamps()
    holders = [Holder(), Holder()]
    for holder in holders:
        stamps.note(holder)
    context = contextvars.Context()
    assert not stamps.concerns(context)
    context.run(holders[1]._data.set, Value(0, None))
    assert stamps.concerns(context)


def test_adopting_changes_the_values_of_other_threads_only() -> None:
    stamps = new_stamps()
    ours, others, unset = Holder(), Holder(), Holder()
    for holder in (ours, others, unset):
        stamps.note(holder)

    @in_context_of_its_own
    def test() -> None:
        own, other = Value(threading.get_ident(), "own"), Value(0, "other's")
        ours._data.set(own)
        others._data.set(other)
        stamps.adopt()
        assert ours._data.get() is own
        adopted = others._data.get()
        assert (adopted.thread_id, adopted.data) == (threading.get_ident(), "other's")
        assert other.thread_id == 0
        assert unset._data.get(None) is None


def test_stamps_take_a_new_lock_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may have held it, which the child does not have."""
    held = threading.Lock()
    monkeypatch.setattr(_interop_locals, "_lock", held)
    with held:
        _interop_locals._reset_after_fork()
        stamps = new_stamps()
        stamps.note(Holder())
    assert len(stamps._variables) == 1


class ChangingInPlace:
    """As asgiref 3.8 does it."""

    def __init__(self) -> None:
        self._data: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("holder")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_data":
            super().__setattr__(name, value)
        else:
            values = self._data.get({})
            values[name] = value
            self._data.set(values)

    def __delattr__(self, name: str) -> None:
        del self._data.get({})[name]


def test_copying_keeps_changes_from_those_who_inherited_the_values() -> None:
    class Copying(ChangingInPlace):
        __setattr__ = _interop_locals.copying(ChangingInPlace.__setattr__)
        __delattr__ = _interop_locals.copying(ChangingInPlace.__delattr__)

    @in_context_of_its_own
    def test() -> None:
        holder = Copying()
        setattr(holder, "one", 1)  # noqa: B010  # it has no such attribute of its own
        contextvars.copy_context().run(setattr, holder, "one", 2)
        contextvars.copy_context().run(delattr, holder, "one")
        assert holder._data.get() == {"one": 1}


@libraries_one_by_one
def test_changes_in_a_task_do_not_reach_those_who_share_what_it_inherited(library: Any) -> None:
    async def main() -> None:
        translation.activate("de")
        await asyncio.create_task(library.sync_to_async(translation.activate)("fr"))
        assert translation.get_language() == "de"
        await asyncio.create_task(library.sync_to_async(translation.deactivate)())
        assert translation.get_language() == "de"

    in_context_of_its_own(lambda: asyncio.run(main()))


def test_asgiref_without_stamps_needs_nobody_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    interop.uninstall()
    with monkeypatch.context() as patch:
        patch.delattr(asgiref.local, "_Storage", raising=False)
        interop.share_registries()
        assert _mirror._arrival_hook is None
        interop.uninstall()
