"""`Local`: where a value can be seen, from which thread and task, and when it is let go."""

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
from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from tests.bridge import Tracked, without_gc
from tests.support import run_in_thread

each_kind = pytest.mark.parametrize("thread_critical", [False, True])


def seen(local: Local) -> object:
    return getattr(local, "name", "nothing")


async def aseen(local: Local) -> object:
    return seen(local)


def make(thread_critical: bool = False, value: object = "value") -> Local:
    local = Local(thread_critical)
    local.name = value
    return local


# --- Attributes ------------------------------------------------------------------


def sync_attributes(thread_critical: bool) -> None:
    local = Local(thread_critical=thread_critical)
    with pytest.raises(AttributeError, match="has no attribute 'name' here") as caught:
        _ = local.name
    assert (caught.value.name, caught.value.obj) == ("name", local)
    local.name = local.other = 1
    local.name = 2
    assert (local.name, local.other) == (2, 1)
    del local.name
    assert seen(local) == "nothing"
    assert local.other == 1
    for _ in range(2):
        with pytest.raises(AttributeError, match="has no attribute 'name' here"):
            del local.name
    with pytest.raises(AttributeError):
        del Local(thread_critical).name


async def async_attributes(thread_critical: bool) -> None:
    sync_attributes(thread_critical)


@each_kind
def test_local_in_a_thread_without_a_loop_sets_gets_and_deletes(thread_critical: bool) -> None:
    sync_attributes(thread_critical)


@each_kind
def test_local_in_async_code_sets_gets_and_deletes(thread_critical: bool) -> None:
    asyncio.run(async_attributes(thread_critical))


@each_kind
def test_local_refuses_each_name_that_it_uses_itself_and_could_not_give_back(
    thread_critical: bool,
) -> None:
    local = make(thread_critical)
    used = [name for name in dir(type(local)) if not name.startswith("__")]
    assert used
    for name in used:
        with pytest.raises(AttributeError, match=f"'{name}' is used by Local itself"):
            setattr(local, name, 1)
    assert seen(local) == "value"


def test_local_cannot_be_subclassed() -> None:
    class Mine(Local):  # type: ignore[misc]  # what is tested
        pass

    with pytest.raises(TypeError, match="cannot be subclassed"):
        Mine()


@each_kind
def test_local_is_an_instance_of_local_and_takes_weak_references(thread_critical: bool) -> None:
    local = Local(thread_critical)
    assert isinstance(local, Local)
    assert weakref.ref(local)() is local


def test_locals_do_not_see_each_others_values() -> None:
    one, two = make(value=1), make(value=2)
    assert (one.name, two.name) == (1, 2)


# --- Contexts, tasks and threads -------------------------------------------------


def test_local_shows_its_value_wherever_its_context_goes() -> None:
    local = make()
    context = contextvars.copy_context()
    assert run_in_thread(lambda: seen(local)) == "nothing"
    assert run_in_thread(lambda: context.run(seen, local)) == "value"
    assert asyncio.run(aseen(local)) == "value"


def test_local_change_is_seen_by_nobody_who_copied_the_context_before() -> None:
    local = make(value="old")
    before = contextvars.copy_context()
    local.name = "new"
    local.other = 1
    assert before.run(seen, local) == "old"
    before.run(delattr, local, "name")
    assert local.name == "new"
    assert before.run(seen, local) == "nothing"


@each_kind
def test_local_in_a_task_is_inherited_and_changes_stay_in_the_task(thread_critical: bool) -> None:
    async def child(local: Local) -> None:
        assert local.name == "parent's"
        local.name = "child's"

    async def parent() -> None:
        local = make(thread_critical, "parent's")
        await asyncio.create_task(child(local))
        assert local.name == "parent's"
        await child(local)
        assert local.name == "child's"

    asyncio.run(parent())


@pytest.mark.parametrize("thread_critical", [False, True])
def test_local_crosses_the_bridge_both_ways_unless_it_is_thread_critical(
    thread_critical: bool,
) -> None:
    def change(local: Local, value: str) -> object:
        before = seen(local)
        local.name = value
        return before

    async def achange(local: Local, value: str) -> object:
        return change(local, value)

    async def main() -> list[object]:
        local = make(thread_critical, "async")
        return [await sync_to_async(change)(local, "sync"), seen(local)]

    local = make(thread_critical, "sync")
    from_sync = [async_to_sync(achange)(local, "async"), seen(local)]
    crossed = not thread_critical
    assert from_sync == (["sync", "async"] if crossed else ["nothing", "sync"])
    assert asyncio.run(main()) == (["async", "sync"] if crossed else ["nothing", "async"])


def test_thread_critical_local_in_a_copied_context_is_seen_by_its_own_loop_only() -> None:
    local = Local(thread_critical=True)

    async def main() -> contextvars.Context:
        local.name = "value"
        return contextvars.copy_context()

    with asyncio.Runner() as runner:
        context = runner.run(main())

        def other_thread() -> object:
            return context.run(asyncio.run, aseen(local))

        assert run_in_thread(other_thread) == "nothing"
        assert context.run(seen, local) == "nothing"
        assert context.run(asyncio.run, aseen(local)) == "nothing"
        # In that context it is still there, if the loop runs.
        assert runner.run(aseen(local), context=context) == "value"


def test_thread_critical_local_of_two_loops_in_one_thread_follows_the_context() -> None:
    local = Local(thread_critical=True)

    async def set_it(value: str) -> None:
        assert seen(local) == "nothing"
        local.name = value
        assert local.name == value

    for value in ("first", "second"):
        asyncio.run(set_it(value))
    assert seen(local) == "nothing"


@each_kind
def test_local_used_by_many_threads_at_once_keeps_their_values_apart(thread_critical: bool) -> None:
    local = Local(thread_critical)
    barrier = threading.Barrier(8)
    right: list[bool] = []

    def work(number: int) -> None:
        barrier.wait(10)
        for turn in range(200):
            local.name = (number, turn)
            local.other = turn
            right.append((local.name, local.other) == ((number, turn), turn))
            del local.other

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert right == [True] * 8 * 200
    assert seen(local) == "nothing"


# --- Threads that inherit a context ----------------------------------------------


def in_inheriting_thread(function: Callable[[], Any]) -> Any:
    """Call `function` in a thread that starts in a copy of this context, as free-threaded Python does."""
    outcome: list[Any] = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(lambda: outcome.append(function())))
    thread._context = context  # type: ignore[attr-defined]  # where Python 3.14 keeps it
    thread.start()
    thread.join(10)
    return outcome[0]


@pytest.fixture
def threads_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_namespaces, "_THREADS_INHERIT_CONTEXT", True)


@pytest.mark.usefixtures("threads_inherit")
def test_local_in_a_thread_that_inherits_a_context_starts_empty() -> None:
    local = make()

    def body() -> tuple[object, object]:
        before = seen(local)
        with pytest.raises(AttributeError):
            del local.name
        local.name = "the thread's"
        return before, seen(local)

    assert in_inheriting_thread(body) == ("nothing", "the thread's")
    assert local.name == "value"


@pytest.mark.usefixtures("threads_inherit")
def test_local_in_a_context_that_a_thread_runs_on_purpose_shows_its_value() -> None:
    local = make()
    moved = contextvars.copy_context()
    assert in_inheriting_thread(lambda: moved.run(seen, local)) == "value"
    assert run_in_thread(lambda: moved.run(seen, local)) == "value"
    assert local.name == "value"
    assert seen(Local()) == "nothing"


# --- Letting go ------------------------------------------------------------------


def test_local_that_is_dropped_lets_its_values_go_in_every_context() -> None:
    with without_gc():
        tracked = [Tracked(), Tracked()]
        alive = [weakref.ref(one) for one in tracked]
        local = make(value=tracked.pop())
        context = contextvars.copy_context()
        context.run(setattr, local, "name", tracked.pop())
        del local
        assert [one() for one in alive] == [None, None]


def test_local_lets_a_value_go_with_its_context() -> None:
    local = Local()
    with without_gc():
        tracked = [Tracked()]
        alive = weakref.ref(tracked[0])
        contextvars.Context().run(setattr, local, "name", tracked.pop())
        assert alive() is None
    assert local._namespaces.live == set()


@each_kind
def test_local_lets_a_value_go_when_it_is_deleted(thread_critical: bool) -> None:
    async def main() -> None:
        tracked = [Tracked()]
        alive = weakref.ref(tracked[0])
        local = make(thread_critical, tracked.pop())
        del local.name
        assert alive() is None

    with without_gc():
        asyncio.run(main())


def test_local_that_goes_in_a_cycle_with_its_value_and_context_goes_whole() -> None:
    """The garbage collector clears weak references before anything can follow them."""

    class Knot:
        def __init__(self) -> None:
            self.local = Local()
            self.context = contextvars.Context()
            self.context.run(setattr, self.local, "name", self)

    alive = weakref.ref(Knot())
    gc.collect()
    assert alive() is None


def test_local_that_is_dropped_while_a_value_of_it_uses_another_one_lets_all_go() -> None:
    """What is let go may run code of its own, which may set and drop other Locals."""

    class Last:
        def __del__(self) -> None:
            make(value=Tracked())
            log.append("gone")

    log: list[str] = []
    with without_gc():
        local = make(value=Last())
        contextvars.copy_context().run(setattr, local, "other", 1)
        del local
    assert log == ["gone"]
