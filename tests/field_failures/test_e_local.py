"""Section E: whose values a `Local` shows, in which thread, and for how long."""

import asyncio
import contextvars
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from django_asyncbridge.bridge import _namespaces
from django_asyncbridge.bridge.local import Local
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from tests.field_failures.common import HOMES, Main, Tracked, on_plain_loop
from tests.support import run_in_thread

each_home = pytest.mark.parametrize("home", HOMES.values(), ids=HOMES.keys())


def value_of(local: Local) -> object:
    """Return the value that a `Local` shows here, or "nothing"."""
    return getattr(local, "value", "nothing")


# --- C48, C49: values follow a copied context -----------------------------------------------


def test_c48_value_follows_the_context_into_to_thread() -> None:
    """C48: Django's language and time zone are still active in `asyncio.to_thread`."""
    local = Local()

    async def main() -> object:
        local.value = "set"
        return await asyncio.to_thread(value_of, local)

    assert on_plain_loop(main) == "set"


def test_c48_value_follows_the_context_into_an_executor_of_another_framework() -> None:
    """C48: as Starlette's and anyio's thread pools run their functions."""
    local = Local()

    async def main() -> object:
        local.value = "set"
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(None, run, value_of, local)

    assert on_plain_loop(main) == "set"


def test_c48_value_set_in_to_thread_stays_in_the_copied_context() -> None:
    """C48: like any context variable, it does not come back from a copy."""
    local = Local()

    def change() -> object:
        local.value = "changed"
        return value_of(local)

    async def main() -> list[object]:
        local.value = "set"
        return [await asyncio.to_thread(change), value_of(local)]

    assert on_plain_loop(main) == ["changed", "set"]


def test_c48_new_thread_without_a_context_shows_nothing() -> None:
    """C48: in a plain thread it stays local to the thread."""
    local = Local()

    def caller() -> tuple[object, object]:
        local.value = "set"
        return run_in_thread(lambda: value_of(local)), value_of(local)

    assert run_in_thread(caller) == ("nothing", "set")


def test_c49_copied_context_shows_its_value_in_every_thread() -> None:
    """C49: whether the thread's ident has been used before plays no part."""
    local = Local()
    idents: list[int] = []

    def set_and_copy() -> contextvars.Context:
        idents.append(threading.get_ident())
        local.value = "set"
        return contextvars.copy_context()

    def get(context: contextvars.Context) -> object:
        idents.append(threading.get_ident())
        return context.run(value_of, local)

    # The first thread has ended, so its ident is free; the ones after it may get it or not.
    context = run_in_thread(set_and_copy)
    seen = [run_in_thread(lambda: get(context)) for _ in range(5)]
    # This thread and the first one live at the same time: certainly two idents.
    seen.append(get(run_in_thread(set_and_copy)))
    assert seen == ["set"] * 6
    assert len(set(idents)) > 1


# --- C50: values are freed with their Local ---------------------------------------------------


def set_tracked(local: Local, references: list["weakref.ref[Tracked]"]) -> None:
    """Give `local` a value that is weakly referred to."""
    local.value = tracked = Tracked()
    references.append(weakref.ref(tracked))


def test_c50_collected_local_frees_its_value_in_the_current_context() -> None:
    """C50: a `Local` per object does not pile up values in a thread that lives on."""
    references: list[weakref.ref[Tracked]] = []
    for _ in range(50):
        set_tracked(Local(), references)
    gc.collect()
    assert [reference() for reference in references] == [None] * 50


@pytest.mark.parametrize("thread_critical", [False, True])
def test_c50_collected_local_frees_its_values_in_every_context(thread_critical: bool) -> None:
    """C50: contexts that live on (tasks, copies, threads) keep nothing of it."""
    references: list[weakref.ref[Tracked]] = []

    async def main() -> None:
        local = Local(thread_critical)
        contexts = [contextvars.copy_context() for _ in range(3)]
        for context in contexts:
            context.run(set_tracked, local, references)
        set_tracked(local, references)
        contexts.append(contextvars.copy_context())
        await asyncio.create_task(asyncio.sleep(0), context=contexts[0])
        del local
        gc.collect()
        assert [reference() for reference in references] == [None] * 4

    on_plain_loop(main)


def test_c50_living_local_keeps_its_value_while_a_context_has_it() -> None:
    """C50: the other side: a value is there as long as the `Local` and the context are."""
    references: list[weakref.ref[Tracked]] = []
    local = Local()
    context = contextvars.copy_context()
    context.run(set_tracked, local, references)
    gc.collect()
    assert context.run(value_of, local) is references[0]()
    assert value_of(local) == "nothing"
    del context
    gc.collect()
    assert references[0]() is None


# --- C52: values are isolated ------------------------------------------------------------------


@each_home
def test_c52_sibling_tasks_do_not_see_each_others_values(
    home: Callable[[Main[Any]], Any],
) -> None:
    """C52: what a task sets or deletes is its own, also in the sync functions it calls."""
    local = Local()

    async def setter(value: str) -> list[object]:
        seen = [value_of(local)]
        await sync_to_async(setattr)(local, "value", value)
        await asyncio.sleep(0)
        return [*seen, value_of(local), await sync_to_async(value_of)(local)]

    async def deleter() -> list[object]:
        await sync_to_async(delattr)(local, "value")
        await asyncio.sleep(0)
        return [value_of(local), await sync_to_async(value_of)(local)]

    async def main() -> list[object]:
        local.value = "main"
        tasks = [setter("a"), deleter(), setter("b")]
        return [*await asyncio.gather(*tasks), value_of(local)]

    assert home(main) == [
        ["main", "a", "a"],
        ["nothing", "nothing"],
        ["main", "b", "b"],
        "main",
    ]


@each_home
def test_c52_value_travels_through_nested_calls_and_back(
    home: Callable[[Main[Any]], Any],
) -> None:
    """C52: one call chain is one namespace, however often it changes sides."""
    local = Local()

    async def inner() -> None:
        local.seen = value_of(local)
        local.value = "inner"
        await sync_to_async(setattr)(local, "added", "innermost")

    def view() -> None:
        local.value = "view"
        async_to_sync(inner)()

    async def main() -> tuple[object, ...]:
        local.value = "main"
        await sync_to_async(view)()
        return local.value, local.seen, local.added

    assert home(main) == ("inner", "view", "innermost")


@each_home
def test_c52_deletion_in_a_sync_function_is_seen_by_its_caller_only(
    home: Callable[[Main[Any]], Any],
) -> None:
    """C52: a deletion comes back like a change, and leaves another `Local` alone."""
    local, other = Local(), Local()

    async def main() -> tuple[object, ...]:
        local.value, other.value = "local", "other"
        sibling = asyncio.create_task(sync_to_async(value_of)(local))
        await sync_to_async(delattr)(local, "value")
        with pytest.raises(AttributeError):
            del local.value
        return value_of(local), value_of(other), await sibling

    assert home(main) == ("nothing", "other", "local")


# --- C53: threads that inherit their starter's context --------------------------------------------


class InheritingThread(threading.Thread):
    """A thread as Python starts it where `sys.flags.thread_inherit_context` is set."""

    def start(self) -> None:
        self._context = contextvars.copy_context()
        super().start()

    def run(self) -> None:
        self._context.run(super().run)


def run_inheriting(function: Callable[[], object]) -> object:
    """Call `function` in a thread that inherits the context, and return its result."""
    results: list[object] = []
    thread = InheritingThread(target=lambda: results.append(function()))
    thread.start()
    thread.join(10)
    return results[0]


@pytest.fixture
def inheriting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the bridge believe that threads inherit their starter's context."""
    monkeypatch.setattr(_namespaces, "_THREADS_INHERIT_CONTEXT", True)


@pytest.mark.usefixtures("inheriting")
def test_c53_thread_that_inherits_a_context_shows_nothing_of_its_starter() -> None:
    """C53: a `Local` is local to sync threads, also where Python hands contexts down."""
    local = Local()

    def child() -> list[object]:
        seen = [value_of(local)]
        local.value = "child"
        return [*seen, value_of(local)]

    def caller() -> tuple[object, object]:
        local.value = "caller"
        return run_inheriting(child), value_of(local)

    assert run_in_thread(caller) == (["nothing", "child"], "caller")


@pytest.mark.usefixtures("inheriting")
def test_c53_deletion_in_a_thread_that_inherits_a_context_finds_nothing() -> None:
    """C53: nor can the thread delete what it cannot see, or keep it alongside its own."""
    local = Local()

    def child() -> tuple[object, object]:
        with pytest.raises(AttributeError):
            del local.value
        local.other = "child"
        return value_of(local), local.other

    def caller() -> tuple[object, object]:
        local.value = "caller"
        return run_inheriting(child), value_of(local)

    assert run_in_thread(caller) == (("nothing", "child"), "caller")


@pytest.mark.usefixtures("inheriting")
def test_c53_context_that_was_moved_on_purpose_shows_its_value_in_an_inheriting_thread() -> None:
    """C53, C48: `copy_context().run` and the bridge's own crossings still carry the values."""
    local = Local()

    def caller() -> object:
        local.value = "caller"
        copied = contextvars.copy_context()
        return run_inheriting(lambda: copied.run(value_of, local))

    async def main() -> list[object]:
        local.value = "main"
        return [
            await sync_to_async(value_of)(local),
            await sync_to_async(value_of, thread_sensitive=False)(local),
            await asyncio.to_thread(value_of, local),
        ]

    assert run_in_thread(caller) == "caller"
    assert on_plain_loop(main) == ["main"] * 3


@pytest.mark.usefixtures("inheriting")
@each_home
def test_c53_values_cross_into_new_threads_that_inherit_a_context(
    home: Callable[[Main[Any]], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C53, C48: the bridge's and the loop's threads are started in the middle of a request as well."""
    monkeypatch.setattr(threading, "Thread", InheritingThread)
    local = Local()

    async def inner() -> object:
        return value_of(local)

    def in_new_loop() -> object:
        return async_to_sync(inner, force_new_loop=True)()

    async def main() -> list[object]:
        local.value = "main"
        async with ThreadSensitiveContext():
            return [
                await sync_to_async(value_of)(local),
                await sync_to_async(async_to_sync(inner))(),
                await sync_to_async(in_new_loop)(),
                await sync_to_async(value_of, thread_sensitive=False)(local),
                await asyncio.to_thread(value_of, local),
            ]

    assert home(main) == ["main"] * 5


def test_c53_without_the_flag_a_context_that_a_thread_runs_in_shows_its_values() -> None:
    """C53: where threads inherit nothing, a context in a thread was moved there on purpose."""
    assert isinstance(_namespaces._THREADS_INHERIT_CONTEXT, bool)
    local = Local()

    def caller() -> object:
        local.value = "caller"
        return run_inheriting(lambda: value_of(local))

    assert run_in_thread(caller) == "caller"
