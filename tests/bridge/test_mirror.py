"""Context variables across a crossing: what is carried over and back, and whose tokens stay good."""

import asyncio
import contextvars
import weakref
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any, NoReturn, TypeVar, cast

import pytest

from django_asyncbridge.bridge import _mirror
from django_asyncbridge.bridge._mirror import Passage, carry_back, on_arrival, restore_context
from tests.bridge import Tracked, without_gc

R = TypeVar("R")

first: ContextVar[Any] = ContextVar("first")
second: ContextVar[Any] = ContextVar("second")


class Crossing:
    """One crossing of the current task, its steps taken one by one."""

    def __init__(self, given: Context | None = None, hold: object = None) -> None:
        self.task = asyncio.current_task()
        self.passage = Passage(self.task, given, hold)
        self.ran = False

    def run(self, function: Callable[..., R], *args: Any) -> R:
        """Do the worker's part."""
        self.ran = True
        result: R = self.passage.run(lambda: function(*args))
        return result

    def back(self) -> None:
        self.passage.back(self.task, self.ran)


def cross(function: Callable[..., R], *args: Any) -> R:
    """Call `function` as the sync function of one whole crossing."""
    crossing = Crossing()
    try:
        return crossing.run(function, *args)
    finally:
        crossing.back()


def in_task(function: Callable[[], None]) -> None:
    """Call `function` as the one step of a task, in a context that starts without our variables."""

    async def main() -> None:
        function()

    contextvars.Context().run(asyncio.run, main())


def in_context_of_its_own(function: Callable[[], None]) -> None:
    contextvars.Context().run(function)


# --- What is carried over and back -----------------------------------------------


def test_passage_carries_values_over_and_what_changed_back() -> None:
    def change() -> object:
        second.set("new")
        return first.get()

    @in_task
    def task() -> None:
        first.set("the task's")
        assert cross(change) == "the task's"
        assert (first.get(), second.get()) == ("the task's", "new")


def test_passage_does_not_show_a_change_before_it_is_back() -> None:
    @in_task
    def task() -> None:
        crossing = Crossing()
        crossing.run(first.set, 1)
        assert first.get(None) is None
        crossing.back()
        assert first.get() == 1


def test_passage_that_never_ran_leaves_the_context_as_it_is() -> None:
    @in_task
    def task() -> None:
        before = contextvars.copy_context()
        Crossing().back()
        assert contextvars.copy_context() == before


def test_passage_whose_function_raised_carries_its_changes_back() -> None:
    def fail() -> NoReturn:
        first.set("set before it failed")
        raise RuntimeError("of the function")

    @in_task
    def task() -> None:
        with pytest.raises(RuntimeError, match="of the function"):
            cross(fail)
        assert first.get() == "set before it failed"


def test_passage_compares_by_identity_and_asks_values_nothing() -> None:
    class Hostile:
        __hash__ = None  # type: ignore[assignment]  # nothing may be asked of it

        def __eq__(self, other: object) -> NoReturn:
            raise AssertionError("compared")

    @in_task
    def task() -> None:
        old, new = Hostile(), Hostile()
        first.set(old)
        cross(lambda: None)
        assert first.get() is old
        cross(first.set, new)
        assert first.get() is new


def test_passage_that_sets_one_variable_and_unsets_another_asks_values_nothing() -> None:
    """The values are the same objects as before, in the same order, but of other variables."""

    class Hostile:
        __hash__ = None  # type: ignore[assignment]  # nothing may be asked of it

        def __eq__(self, other: object) -> NoReturn:
            raise AssertionError("compared")

    values = [Hostile(), Hostile()]
    # The order in which a context lists its variables is that of their hashes, which cannot be chosen.
    for _ in range(20_000):
        kept, unset, new = (ContextVar[Any](name) for name in ("kept", "unset", "new"))
        for order in (values, values[::-1]):
            old, changed = Context(), Context()
            old.run(kept.set, values[0])
            old.run(unset.set, values[1])
            changed.run(kept.set, order[0])
            changed.run(new.set, order[1])
            assert _mirror._changes(old, changed).unset == [unset]


def test_passage_carries_back_a_value_that_is_equal_but_another_object() -> None:
    @in_task
    def task() -> None:
        old: list[int] = []
        new: list[int] = []
        first.set(old)
        cross(first.set, new)
        assert first.get() is new


def test_passage_tells_one_variable_from_another_that_has_the_same_value() -> None:
    """As many variables as before, with the same objects as values: only the variables differ."""

    @in_task
    def task() -> None:
        value = object()
        token = cross(first.set, value)

        def swap() -> None:
            first.reset(token)
            second.set(value)

        cross(swap)
        assert first.get(None) is None
        assert second.get() is value


def test_passage_into_a_context_given_shows_that_and_carries_nothing_back() -> None:
    @in_task
    def task() -> None:
        first.set("the task's")
        given = contextvars.copy_context()
        given.run(first.set, "given")
        crossing = Crossing(given)
        assert crossing.run(first.get) == "given"
        crossing.run(second.set, "kept in it")
        crossing.back()
        assert first.get() == "the task's"
        assert second.get(None) is None
        assert given[second] == "kept in it"


def test_passage_into_a_context_in_use_says_how_to_give_each_call_its_own() -> None:
    @in_task
    def task() -> None:
        given = contextvars.copy_context()
        with pytest.raises(RuntimeError, match=r"is in use by a call.*context\.copy\(\)"):
            given.run(Crossing(given).run, print)


def test_passage_into_a_context_given_lets_a_runtime_error_of_the_function_through() -> None:
    def fail() -> NoReturn:
        raise RuntimeError("of the function")

    @in_task
    def task() -> None:
        with pytest.raises(RuntimeError, match="of the function"):
            Crossing(Context()).run(fail)


def test_twin_whose_context_has_gone_is_not_kept() -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        context = Context()
        twin = _mirror._Twin(weakref.ref(context), task, {})
        del context
        twin.keep()
        assert _mirror._twins.get() == ()

    asyncio.run(main())


def test_twin_whose_task_has_gone_is_nobodys() -> None:
    @in_context_of_its_own
    def no_task() -> None:
        context = Context()
        twin = _mirror._Twin(weakref.ref(context), cast("asyncio.Task[Any]", Tracked()), {})
        twin.keep()
        assert _mirror._twins.get() == (twin,)
        assert twin.owner() is None


def test_passage_without_a_task_carries_values_both_ways() -> None:
    """As for a coroutine that is stepped by hand, or in a callback of the loop."""

    @in_context_of_its_own
    def no_task() -> None:
        token_free = Passage(None, None)
        first.set("changed meanwhile")
        token_free.run(lambda: second.set("new"))
        token_free.back(None, ran=True)
        assert (first.get(), second.get()) == ("changed meanwhile", "new")


def test_passage_once_back_holds_no_variable_and_no_task() -> None:
    """An error's traceback keeps it, for as long as the error is kept."""

    @in_task
    def task() -> None:
        tracked = Tracked()
        alive = weakref.ref(tracked)
        with without_gc():
            token = first.set(tracked)
            crossing = Crossing()
            crossing.run(lambda: None)
            crossing.back()
            first.reset(token)
            del tracked, token
            assert alive() is None


# --- Tokens ----------------------------------------------------------------------


def test_token_that_outlives_its_call_resets_in_the_next_one() -> None:
    @in_task
    def task() -> None:
        first.set("before")
        token = cross(first.set, "middle")
        assert cross(first.get) == "middle"
        cross(first.reset, token)
        assert first.get() == "before"


def test_token_of_a_variable_that_was_unset_unsets_it_in_the_task_too() -> None:
    @in_task
    def task() -> None:
        token = cross(first.set, "set")
        assert first.get() == "set"
        cross(first.reset, token)
        assert first.get(None) is None
        assert first not in contextvars.copy_context()


def test_token_of_a_variable_that_was_set_and_unset_twice_unsets_it_twice() -> None:
    @in_task
    def task() -> None:
        for _ in range(2):
            token = cross(first.set, "set")
            cross(first.reset, token)
            assert first not in contextvars.copy_context()


def test_token_stays_good_while_the_task_changes_variables_itself() -> None:
    @in_task
    def task() -> None:
        token = cross(first.set, "set")
        first.set("the task's")
        second.set("the task's")
        assert cross(lambda: (first.get(), second.get())) == ("the task's", "the task's")
        cross(first.reset, token)
        assert first.get(None) is None
        assert second.get() == "the task's"


def test_token_stays_good_after_a_call_that_was_withdrawn() -> None:
    @in_task
    def task() -> None:
        token = cross(first.set, "set")
        Crossing().back()
        cross(first.reset, token)
        assert first.get(None) is None


def test_token_that_is_dropped_lets_its_context_go_and_the_next_call_does_without() -> None:
    @in_task
    def task() -> None:
        with without_gc():
            tokens = [cross(second.set, "set")]
            tracked = [Tracked()]
            alive = weakref.ref(tracked[0])
            cross(first.set, tracked.pop())
            first.set("only that context still has the other value")
            assert alive() is not None
            tokens.clear()
            assert alive() is None
        assert cross(second.get) == "set"


def test_token_of_a_call_is_no_good_in_a_second_one_that_runs_at_the_same_time() -> None:
    """A coroutine stepped by hand may start a call before the last one is done."""

    @in_task
    def task() -> None:
        token = cross(first.set, "set")
        one, two = Crossing(), Crossing()
        with pytest.raises(ValueError, match="different Context"):
            two.run(first.reset, token)
        two.run(second.set, "two's")
        one.run(first.reset, token)
        two.back()
        one.back()
        assert first.get(None) is None
        assert second.get() == "two's"


def test_token_is_good_again_once_the_call_that_ran_at_the_same_time_is_done() -> None:
    @in_task
    def task() -> None:
        token = cross(first.set, "set")
        crossings = Crossing(), Crossing()
        for crossing in crossings:
            crossing.run(lambda: None)
            crossing.back()
        cross(first.reset, token)
        assert first.get(None) is None


def test_token_of_a_task_is_no_good_in_a_task_that_it_started() -> None:
    async def child(token: contextvars.Token[Any]) -> None:
        assert cross(first.get) == "set"
        with pytest.raises(ValueError, match="different Context"):
            cross(first.reset, token)

    async def parent() -> None:
        token = cross(first.set, "set")
        await asyncio.create_task(child(token))
        cross(first.reset, token)
        assert first.get(None) is None

    contextvars.Context().run(asyncio.run, parent())


def test_token_of_a_task_that_has_ended_is_no_good_where_no_task_runs() -> None:
    """Nobody may enter that context any more: who is in no task is not that task."""
    kept: list[Any] = []

    @in_task
    def task() -> None:
        kept.extend((cross(first.set, "set"), contextvars.copy_context()))

    def no_task() -> None:
        passage = Passage(None, None)
        with pytest.raises(ValueError, match="different Context"):
            passage.run(lambda: first.reset(token))
        passage.back(None, ran=True)

    token, context = kept
    context.run(no_task)
    assert context[first] == "set"


def test_token_stays_good_when_another_task_of_the_same_context_makes_one_as_well() -> None:
    """P3: as for two receivers of `Signal.asend`, which share their context."""
    shared = contextvars.Context()
    for variable in (first, second):
        shared.run(variable.set, "before")

    async def receiver(variable: ContextVar[Any]) -> None:
        token = cross(variable.set, "set")
        await asyncio.sleep(0)
        cross(variable.reset, token)
        assert variable.get() == "before"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(
            *(loop.create_task(receiver(variable), context=shared) for variable in (first, second))
        )

    asyncio.run(main())


def test_call_after_the_task_unset_a_variable_sees_it_unset_though_a_token_is_kept() -> None:
    @in_task
    def task() -> None:
        unsets = first.set("set")
        kept = cross(second.set, "set")
        first.reset(unsets)
        assert cross(lambda: first.get("unset")) == "unset"
        assert second.get() == "set"
        del kept


def test_token_of_a_variable_that_somebody_else_set_first_leaves_that_value() -> None:
    """Tasks that share a context: only who set a variable first could unset it."""

    @in_task
    def task() -> None:
        crossing = Crossing()
        token = crossing.run(first.set, "the call's")
        first.set("another task's")
        crossing.back()
        assert first.get() == "the call's"
        cross(first.reset, token)
        assert first.get() == "the call's"


def test_token_is_of_no_use_when_the_task_has_moved_to_another_context() -> None:
    """A coroutine stepped by hand: what the first context unset stays set in the second."""

    @in_task
    def task() -> None:
        token = cross(first.set, "set")
        moved = contextvars.copy_context()
        moved.run(cross, first.reset, token)
        assert moved[first] == "set"
        assert first.get() == "set"


# --- The mark of a held thread ---------------------------------------------------


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
def test_mark_is_seen_by_the_function_only_whatever_way_its_context_is_made(
    kept: bool, hooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mirror, "_arrival_hook", (lambda: None) if hooked else None)

    def function() -> object:
        second.set("new")
        return _mirror.mark.get(None)

    @in_task
    def task() -> None:
        token = cross(first.set, "set") if kept else None
        crossing = Crossing(None, "the hold")
        assert crossing.run(function) == "the hold"
        crossing.back()
        assert second.get() == "new"
        assert _mirror.mark not in contextvars.copy_context()
        assert cross(_mirror.mark.get, None) is None
        del token


def test_mark_in_a_given_context_is_gone_after_the_call() -> None:
    @in_task
    def task() -> None:
        given = Context()
        crossing = Crossing(given, "the hold")
        assert crossing.run(_mirror.mark.get) == "the hold"
        crossing.back()
        assert _mirror.mark not in given


# --- Arrivals --------------------------------------------------------------------


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Collect what `first` is wherever values arrive."""
    seen: list[object] = []
    # What Django's app may have put there comes back after the test.
    monkeypatch.setattr(_mirror, "_arrival_hook", None)
    monkeypatch.setattr(_mirror, "_concerns", None)
    on_arrival(lambda: seen.append(first.get(None)))
    return seen


def test_arrival_hook_is_called_in_the_worker_before_the_function_and_in_the_task_after_it(
    arrivals: list[object],
) -> None:
    def change() -> None:
        assert arrivals == ["before"]
        first.set("after")

    @in_task
    def task() -> None:
        first.set("before")
        cross(change)
        assert arrivals == ["before", "after"]


def test_arrival_hook_that_is_taken_out_is_not_called(arrivals: list[object]) -> None:
    on_arrival(None)

    @in_task
    def task() -> None:
        cross(first.set, "set")

    assert arrivals == []


def test_arrival_hook_is_not_called_in_the_task_when_nothing_has_changed(
    arrivals: list[object],
) -> None:
    @in_task
    def task() -> None:
        first.set("before")
        cross(lambda: None)
        assert arrivals == ["before"]


@pytest.mark.parametrize("kept", [False, True])
def test_arrival_hook_changes_values_for_the_function_only(
    kept: bool, monkeypatch: pytest.MonkeyPatch, arrivals: list[object]
) -> None:
    """What it sets in the worker's thread is not carried back; what the function sets beside it is."""
    in_worker = False

    def hook() -> None:
        if in_worker:
            first.set("for the worker")

    def function() -> object:
        second.set("new")
        return first.get()

    on_arrival(hook)

    @in_task
    def task() -> None:
        nonlocal in_worker
        first.set("the task's")
        token = cross(second.set, "kept") if kept else None
        in_worker = True
        crossing = Crossing()
        assert crossing.run(function) == "for the worker"
        in_worker = False
        crossing.back()
        assert (first.get(), second.get()) == ("the task's", "new")
        del token

    assert arrivals == []


def test_arrival_hook_is_not_called_in_the_worker_with_values_that_do_not_concern_it(
    arrivals: list[object],
) -> None:
    on_arrival(lambda: arrivals.append(first.get(None)), lambda context: first in context)

    @in_task
    def task() -> None:
        cross(lambda: None)
        cross(second.set, "set")
        assert arrivals == [None]
        first.set("before")
        cross(lambda: None)
        assert arrivals == [None, "before"]


def test_arrival_hook_lets_an_error_of_the_function_through(arrivals: list[object]) -> None:
    def fail() -> NoReturn:
        second.set("set before it failed")
        raise RuntimeError("of the function")

    @in_task
    def task() -> None:
        with pytest.raises(RuntimeError, match="of the function"):
            cross(fail)
        assert second.get() == "set before it failed"
        assert arrivals == [None, None]


# --- restore_context -------------------------------------------------------------


def test_restore_context_sets_what_differs_and_leaves_what_only_the_current_one_has() -> None:
    @in_context_of_its_own
    def restore() -> None:
        first.set("old")
        other = contextvars.copy_context()
        other.run(first.set, "new")
        second.set("only here")
        restore_context(other)
        assert (first.get(), second.get()) == ("new", "only here")


# --- carry_back ------------------------------------------------------------------


def test_carry_back_sets_what_has_changed_but_for_the_variable_left_out() -> None:
    @in_context_of_its_own
    def test() -> None:
        before = contextvars.copy_context()
        after = before.copy()
        after.run(first.set, "of the coroutine")
        after.run(second.set, "left out")
        carry_back(before, after, second)
        assert first.get() == "of the coroutine"
        assert second.get(None) is None
