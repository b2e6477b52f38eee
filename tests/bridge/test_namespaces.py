"""What a `Local` keeps in contexts: used again, let go, interrupted anywhere, and checked against a plain model."""

import asyncio
import contextvars
import gc
import itertools
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from django_asyncbridge.bridge import _namespaces as module
from django_asyncbridge.bridge import local as local_module
from django_asyncbridge.bridge.local import Local
from tests.bridge import Tracked, turn, without_gc
from tests.support import run_child, run_in_thread

each_kind = pytest.mark.parametrize("thread_critical", [False, True])
each_loop = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(autouse=True)
def own_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each test start with no variable left over from another one."""
    monkeypatch.setattr(module, "_unused_vars", [])


@pytest.fixture(params=[True, False], ids=["counted", "uncounted"])
def counted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Have references counted, or not, as on interpreters where their number says nothing."""
    if not request.param:
        monkeypatch.setattr(module, "_COUNTED", False)
        monkeypatch.setattr(module, "ALONE", -1)
        monkeypatch.setattr(local_module, "ALONE", -1)
    return bool(request.param)


def seen(local: Local, name: str = "name") -> object:
    return getattr(local, name, "nothing")


async def aseen(local: Local) -> object:
    return seen(local)


# --- Namespaces are used again, or not ----------------------------------------------------


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("names", [["name"], ["name", "other"]])
def test_namespaces_of_a_name_set_often_in_one_context_stay_few(names: list[str]) -> None:
    local = Local()

    def body() -> None:
        for turn_ in range(1000):
            for name in names:
                setattr(local, name, turn_)
            if turn_ % 3 == 0:
                for name in names:
                    delattr(local, name)

    contextvars.Context().run(body)
    assert len(local._namespaces.live) <= module._SPARES
    assert len(local._namespaces.spare) <= module._SPARES


@pytest.mark.skipif(not module._COUNTED, reason="no namespace is used again on this interpreter")
@pytest.mark.parametrize("names", [["name"], ["name", "other"]])
def test_namespace_that_no_other_context_has_is_used_again_and_holds_nothing(
    names: list[str],
) -> None:
    local = Local()
    for name in names * 3:
        setattr(local, name, 1)
    space = local._namespaces
    known = set(space.live)
    for turn_ in range(10):
        for name in names:
            setattr(local, name, turn_)
    assert space.live == known
    assert [(one.name, one.names, one.value) for one in space.spare] == [(None, None, None)]


def test_namespace_that_a_copied_context_has_is_left_alone() -> None:
    local = Local()
    local.name = "old"
    copies = [contextvars.copy_context() for _ in range(3)]
    for value in range(5):
        local.name = value
    assert [context.run(seen, local) for context in copies] == ["old"] * 3
    copies[0].run(delattr, local, "name")
    assert [context.run(seen, local) for context in copies] == ["nothing", "old", "old"]


def test_namespace_lets_a_replaced_value_go_at_once() -> None:
    local = Local()
    with without_gc():
        for name in ("name", "name", "other", "name"):
            tracked = [Tracked()]
            alive = weakref.ref(tracked[0])
            setattr(local, name, tracked.pop())
            setattr(local, name, 1)
            assert alive() is None


def test_namespaces_of_many_contexts_that_end_are_forgotten() -> None:
    local = Local()
    local.name = "old"
    known = set(local._namespaces.live)
    for turn_ in range(1000):
        contextvars.copy_context().run(setattr, local, "name", turn_)
        contextvars.Context().run(setattr, local, "name", turn_)
    assert local._namespaces.live == known


@pytest.mark.skipif(not module._COUNTED, reason="no namespace is used again on this interpreter")
def test_namespaces_kept_for_later_are_bounded() -> None:
    local = Local()
    contexts = [contextvars.Context() for _ in range(3 * module._SPARES)]
    for context in contexts:
        context.run(setattr, local, "name", 1)
    for context in contexts:
        context.run(delattr, local, "name")
    assert len(local._namespaces.spare) == module._SPARES


# --- Variables are used again ---------------------------------------------------------------


@each_kind
@pytest.mark.usefixtures("counted")
def test_variables_of_locals_that_come_and_go_do_not_pile_up(thread_critical: bool) -> None:
    async def main() -> int:
        for turn_ in range(200):
            one, two = Local(thread_critical), Local(thread_critical)
            assert (seen(one), seen(two)) == ("nothing", "nothing")
            one.name, two.name = turn_, -turn_
            two.other = one.name
            assert (seen(one), seen(two), seen(two, "other")) == (turn_, -turn_, turn_)
        return len(contextvars.copy_context())

    assert contextvars.Context().run(asyncio.run, main()) <= 4  # as many live at once


@pytest.mark.skipif(not module._COUNTED, reason="who uses a variable is not known here")
def test_variable_that_somebody_is_about_to_use_is_not_given_to_another_local() -> None:
    local = Local()
    space = local._namespaces
    del local
    assert module._unused_vars == []
    var = space.var
    del space
    Local()
    assert len(module._unused_vars) == 1
    assert module._unused_vars[0] is not var


# --- Against a plain model --------------------------------------------------------------------


class Model:
    """Random operations on some Locals in some contexts, each done to dicts as well."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.locals: dict[int, Local] = {}
        self.contexts = {0: contextvars.Context()}
        self.values: dict[int, dict[tuple[int, str], int]] = {0: {}}
        self.references: dict[int, weakref.ref[Tracked]] = {}
        self.numbers = iter(range(1, 1_000_000))

    def step(self) -> None:
        """Do one thing, mostly to names."""
        chance = self.random.random()
        if chance < 0.08 or not self.locals:
            self.locals[next(self.numbers)] = Local()
        elif chance < 0.13:
            self.drop_local(self.random.choice(list(self.locals)))
        elif chance < 0.22 and len(self.contexts) < 10:
            self.copy_context(self.random.choice(list(self.contexts)))
        elif chance < 0.28 and len(self.contexts) > 1:
            context = self.random.choice(list(self.contexts))
            del self.contexts[context], self.values[context]
        else:
            self.change_names()

    def drop_local(self, local: int) -> None:
        del self.locals[local]
        for context, values in self.values.items():
            kept = {key: value for key, value in values.items() if key[0] != local}
            self.values[context] = kept

    def copy_context(self, context: int) -> None:
        copy = next(self.numbers)
        self.contexts[copy] = self.contexts[context].copy()
        self.values[copy] = dict(self.values[context])

    def change_names(self) -> None:
        context, local = (self.random.choice(list(each)) for each in (self.contexts, self.locals))
        name = self.random.choice("aaaabc")
        for _ in range(self.random.choice((1, 1, 3))):
            change = self.set if self.random.random() < 0.7 else self.delete
            self.contexts[context].run(change, self.values[context], local, name)

    def set(self, values: dict[tuple[int, str], int], local: int, name: str) -> None:
        tracked, number = Tracked(), next(self.numbers)
        self.references[number] = weakref.ref(tracked)
        setattr(self.locals[local], name, tracked)
        values[local, name] = number

    def delete(self, values: dict[tuple[int, str], int], local: int, name: str) -> None:
        if values.pop((local, name), None) is not None:
            delattr(self.locals[local], name)
        else:
            with pytest.raises(AttributeError):
                delattr(self.locals[local], name)

    def visible(self, context: int) -> Iterator[tuple[tuple[int, str], object]]:
        for key, local in self.locals.items():
            for name in "abc":
                value = self.contexts[context].run(getattr, local, name, None)
                if value is not None:
                    yield (key, name), value

    def check(self) -> None:
        """Compare what every context shows, and what is alive at all."""
        for context, values in self.values.items():
            expected = {key: self.references[number]() for key, number in values.items()}
            assert dict(self.visible(context)) == expected
        del expected
        alive = {number for number, one in self.references.items() if one() is not None}
        assert alive == {number for values in self.values.values() for number in values.values()}


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("inherit", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_namespaces_show_and_keep_what_a_plain_model_does(
    seed: int, inherit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_THREADS_INHERIT_CONTEXT", inherit)
    with without_gc():
        model = Model(seed)
        for number in range(300):
            model.step()
            if number % 5 == 0:
                model.check()


# --- Interruptions ----------------------------------------------------------------------------


class Interrupting(str):
    """A name that does something once, when it is compared or looked up for the so-manieth time.

    So does a signal handler or a finalizer, which may run at any moment, and so also then.
    """

    __slots__ = ("action", "countdown")
    action: Callable[[], object] | None
    countdown: int

    def __eq__(self, other: object) -> bool:
        self.tick()
        return str(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        self.tick()
        return hash(str(self))

    def tick(self) -> None:
        self.countdown -= 1
        if self.countdown < 0 and self.action is not None:
            action, self.action = self.action, None
            action()


def interrupting(action: Callable[[], object], countdown: int) -> Interrupting:
    name = Interrupting("name")
    name.action, name.countdown = action, countdown
    return name


#: How often a name is compared and looked up at most in one operation.
MOMENTS = 8

BEFORE: dict[str, dict[str, object]] = {
    "nothing": {},
    "the name": {"name": 1},
    "another": {"other": 1},
    "several": {"name": 1, "other": 1, "third": 1},
}
each_before = pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE.keys())


def interrupted(
    thread_critical: bool, before: dict[str, object], change: Callable[[Local, str], None]
) -> Iterator[dict[str, object] | None]:
    """Change a `Local`, interrupted at each moment by one that sets a name; give what it shows."""

    async def at(moment: int) -> dict[str, object] | None:
        local = Local(thread_critical)
        for name, value in before.items():
            setattr(local, name, value)
        name = interrupting(lambda: setattr(local, "added", 3), moment)
        change(local, name)
        shown = ((name, seen(local, name)) for name in ("name", "other", "third", "added"))
        return None if name.action else {name: one for name, one in shown if one != "nothing"}

    yield from itertools.takewhile(bool, (asyncio.run(at(moment)) for moment in range(MOMENTS)))


@each_kind
@each_before
def test_namespace_changed_in_the_middle_of_setting_a_name_keeps_both(
    thread_critical: bool, before: dict[str, object]
) -> None:
    all_shown = list(
        interrupted(thread_critical, before, lambda local, name: setattr(local, name, 2))
    )
    assert 1 <= len(all_shown) < MOMENTS
    for shown in all_shown:
        assert shown == {**before, "name": 2, "added": 3}


@each_kind
@pytest.mark.parametrize("before", [BEFORE["the name"], {"name": 1, "other": 1}, BEFORE["several"]])
def test_namespace_changed_in_the_middle_of_deleting_a_name_keeps_the_change(
    thread_critical: bool, before: dict[str, object]
) -> None:
    left = {name: value for name, value in before.items() if name != "name"}
    all_shown = list(interrupted(thread_critical, before, delattr))
    assert 1 <= len(all_shown) < MOMENTS
    for shown in all_shown:
        assert shown == {**left, "added": 3}


@pytest.mark.parametrize("moment", range(3))
def test_namespace_emptied_in_the_middle_of_a_change_shows_only_that(moment: int) -> None:
    local = Local()

    def empty() -> None:
        del local.name, local.other

    local.name = local.other = 1
    setattr(local, interrupting(empty, moment), 2)
    assert (seen(local), seen(local, "other")) == (2, "nothing")


def test_namespace_emptied_in_the_middle_of_deleting_a_name_stays_empty() -> None:
    local = Local()
    for moment in range(2):
        local.name = 1
        delattr(local, interrupting(lambda: delattr(local, "name"), 1 + moment))
        assert seen(local) == "nothing"


# --- The end of a Local ------------------------------------------------------------------------


class Knot:
    """Garbage that only the collector finds, with a finalizer that uses the `Local` in it."""

    def tie(self, local: Local, log: list[Any]) -> None:
        self.local, self.log, self.me = local, log, self
        self.context = contextvars.Context()
        self.context.run(setattr, local, "name", self)

    def __del__(self) -> None:
        tracked = Tracked()
        self.local.name = tracked
        self.log += [self.local.name is tracked, weakref.ref(tracked)]


@each_kind
@pytest.mark.parametrize("knot_first", [False, True])
def test_local_used_by_a_finalizer_of_the_same_garbage_works_and_keeps_nothing(
    thread_critical: bool, knot_first: bool
) -> None:
    """The collector calls finalizers in the order in which objects were made, as of today."""
    log: list[Any] = []

    def leave() -> None:
        first = Knot() if knot_first else None
        local = Local(thread_critical)
        (first or Knot()).tie(local, log)

    async def main() -> None:
        with without_gc():
            for _ in range(5):
                leave()
            assert log == []
            gc.collect()
        assert log[::2] == [True] * 5
        assert [alive() for alive in log[1::2]] == [None] * 5
        fresh = [Local(thread_critical) for _ in range(20)]
        assert {seen(local) for local in fresh} == {"nothing"}

    asyncio.run(main())


@each_kind
def test_local_whose_finalizer_has_run_works_as_another_one(thread_critical: bool) -> None:
    async def main() -> None:
        local = Local(thread_critical)
        local.name = 1
        local.__del__()  # as the garbage collector calls it
        assert seen(local) == "nothing"
        with without_gc():
            tracked = [Tracked()]
            alive = weakref.ref(tracked[0])
            local.name = tracked.pop()
            other = Local(thread_critical)
            assert (seen(local), seen(other)) == (alive(), "nothing")
            del local
            assert alive() is None

    asyncio.run(main())


@each_kind
def test_local_that_was_not_made_completely_goes_in_silence(thread_critical: bool) -> None:
    """As one whose making was interrupted; what a finalizer complains about fails the test."""
    Local.__new__(Local, thread_critical)


def test_locals_alive_at_the_end_of_the_interpreter_go_in_silence() -> None:
    child = run_child("""
        import builtins, sys
        from django_asyncbridge.bridge.local import Local

        class Knot:
            def __init__(self):
                self.me, self.plain, self.critical = self, Local(), Local(True)
                self.plain.name = self.critical.name = self

            def __del__(self):
                self.plain.name = self.critical.name = 1

        module_level, builtins.kept, sys.kept = Knot(), Knot(), Knot()
    """)
    assert child.stderr == ""


# --- Event loops --------------------------------------------------------------------------------


@each_loop
def test_loop_that_moves_to_another_thread_takes_its_values_along(new_loop: NewLoop) -> None:
    local = Local(thread_critical=True)
    local.name = "sync"
    loop = new_loop()

    async def main() -> list[object]:
        local.name = "async"
        found = [seen(local)]
        move = asyncio.get_running_loop().create_future()
        loop.call_soon(loop.stop)
        loop.call_soon(lambda: loop.call_soon(move.set_result, None))
        await move
        found.append(seen(local))
        local.name = "moved"
        return [*found, seen(local), await asyncio.create_task(aseen(local))]

    def go_on() -> list[object]:
        local.name = "helper's"
        found = loop.run_until_complete(task)
        return [*found, seen(local)]

    task = loop.create_task(main())
    loop.run_forever()
    assert not task.done()
    assert run_in_thread(go_on) == ["async", "async", "moved", "moved", "helper's"]
    assert seen(local) == "sync"
    loop.close()


@each_loop
def test_loop_shows_nothing_of_another_one_and_keeps_its_own(new_loop: NewLoop) -> None:
    local = Local(thread_critical=True)
    loops = [new_loop(), new_loop()]
    context = contextvars.copy_context()

    async def change(value: int) -> object:
        before = seen(local)
        local.name = value
        return before

    def run(loop: asyncio.AbstractEventLoop, value: int) -> object:
        return loop.run_until_complete(loop.create_task(change(value), context=context))

    assert [run(loops[number % 2], number) for number in range(4)] == ["nothing", "nothing", 0, 1]
    for loop in loops:
        loop.close()


@each_loop
def test_loop_that_is_gone_lets_its_values_go_and_leaves_no_entry(new_loop: NewLoop) -> None:
    local = Local(thread_critical=True)
    kept: list[contextvars.Context] = []

    async def main() -> "weakref.ref[Tracked]":
        local.name = tracked = Tracked()
        kept.append(contextvars.copy_context())
        return weakref.ref(tracked)

    loop = new_loop()
    alive, gone = loop.run_until_complete(main()), weakref.ref(loop)
    assert alive() is not None
    loop.close()
    del loop
    gc.collect()
    assert gone() is None
    assert alive() is None
    assert local._loops.by_id == {}
    assert len(module._unused_vars) == 1


def test_loops_with_the_id_of_one_that_is_gone_show_nothing_of_it() -> None:
    """Should the weak reference's callback have been cut short."""
    local = Local(thread_critical=True)
    loop, other = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def check() -> None:
        assert seen(local) == "nothing"
        local.name = 2
        assert seen(local) == 2

    async def put() -> None:
        local.name = 1
        by_id = local._loops.by_id
        by_id[id(other)] = by_id.pop(id(loop))
        other.call_soon(other.stop)

    loop.run_until_complete(put())
    turn(other)
    other.run_until_complete(check())
    assert list(local._loops.by_id) == [id(other)]
    loop.close()
    other.close()
