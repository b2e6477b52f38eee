"""`run` and `run_in_thread`: which step runs where, how often a way crosses, what cancellation does."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import (
    ThreadSensitiveContext,
    async_to_sync,
    cancelled,
    sync_to_async,
)
from django_asyncbridge.handlers.runner import run, run_in_thread
from django_asyncbridge.handlers.sides import Side, Step, never_blocks
from django_asyncbridge.handlers.way import Way
from django_asyncbridge.testing import count_crossings
from tests.bridge import LIMIT_SECONDS, wait


class Track:
    """A way of steps that note where they ran: "l" on the event loop, "h" in the home thread, "?" elsewhere."""

    def __init__(self, sides: str) -> None:
        self.places = ""
        self.loop_thread = threading.get_ident()
        self.home: int | None = None
        self._sides = sides
        self.closed = False

    def note(self) -> None:
        here = threading.get_ident()
        self.places += "l" if here == self.loop_thread else "h" if here == self.home else "?"

    async def anote(self) -> None:
        self.note()
        await asyncio.sleep(0)

    def step(self, kind: str) -> Step:
        if kind == "L":
            return Step(self.anote, Side.LOOP)
        if kind == "A":
            return Step(self.note, Side.ANY)
        unless = {"T": None, "n": never_blocks, "b": lambda: False}[kind]
        return Step(self.note, Side.THREAD, unless)

    def way(self) -> Way:
        try:
            for kind in self._sides:
                yield self.step(kind), ()
            return "done"
        finally:
            self.closed = True


async def on_loop(sides: str) -> tuple[str, int]:
    track = Track(sides)
    async with ThreadSensitiveContext():
        track.home = await sync_to_async(threading.get_ident)()
        with count_crossings() as crossings:
            assert await run(track.way()) == "done"
    assert track.closed
    return track.places, crossings.count


@pytest.mark.parametrize(
    ("sides", "places", "crossings"),
    [
        ("", "", 0),
        ("A", "l", 0),
        ("AnLA", "llll", 0),
        ("T", "h", 1),
        ("b", "h", 1),
        # The thread is kept as long as nothing has to be awaited.
        ("ATAnTb", "lhhhhh", 1),
        ("TATLTAT", "hhhlhhh", 2),
        ("LTLTL", "lhlhl", 2),
        ("TAL", "hhl", 1),
        ("TTLAA", "hhlll", 1),
    ],
)
def test_run_crosses_where_the_side_changes(sides: str, places: str, crossings: int) -> None:
    assert asyncio.run(on_loop(sides)) == (places, crossings)


async def below_sync_code(sides: str) -> tuple[str, int]:
    track = Track(sides)

    def holds_its_thread() -> int:
        track.home = threading.get_ident()
        with count_crossings() as crossings:
            assert run_in_thread(track.way()) == "done"
        return crossings.count

    count = await sync_to_async(holds_its_thread)()
    assert track.closed
    return track.places, count


@pytest.mark.parametrize(
    ("sides", "places", "crossings"),
    [
        ("", "", 0),
        ("AnTb", "hhhh", 0),
        ("TL", "hl", 1),
        # What never blocks goes on where it is.
        ("TLAnbL", "hlllhl", 2),
        ("LTLT", "lhlh", 2),
    ],
)
def test_run_in_thread_crosses_where_the_side_changes(
    sides: str, places: str, crossings: int
) -> None:
    assert asyncio.run(below_sync_code(sides)) == (places, crossings)


def test_run_in_thread_without_a_loop_anywhere_awaits_on_a_loop_of_its_own() -> None:
    track = Track("LTL")
    track.home = threading.get_ident()
    assert run_in_thread(track.way()) == "done"
    assert len(track.places) == 3


# --- Results and exceptions ----------------------------------------------------------


def passing_on(steps: list[Step]) -> Way:
    """Yield each step with what the one before returned, or the exception it raised."""
    last: Any = "begin"
    for step in steps:
        try:
            last = yield step, (last,)
        except Exception as error:
            last = error
    if isinstance(last, Exception):
        raise last
    return last


def add(text: str) -> Callable[[Any], Any]:
    return lambda last: f"{last} {text}"


def fail(error: Exception) -> Callable[[Any], Any]:
    def call(_last: Any) -> Any:
        raise error

    return call


def awaited(call: Callable[[Any], Any]) -> Step:
    async def awaited(last: Any) -> Any:
        return call(last)

    return Step(awaited, Side.LOOP)


@pytest.mark.parametrize("runs", ["on the loop", "in a thread"])
def test_run_hands_results_on_across_sides(runs: str) -> None:
    steps = [Step(add("one"), Side.THREAD), awaited(add("two")), Step(add("three"), Side.ANY)]
    assert everywhere(runs, passing_on(steps)) == "begin one two three"


@pytest.mark.parametrize("runs", ["on the loop", "in a thread"])
@pytest.mark.parametrize("error", [ValueError("x"), StopIteration("x"), StopAsyncIteration()])
@pytest.mark.parametrize("side", Side)
def test_run_throws_what_a_step_raises_into_the_way(
    runs: str, error: Exception, side: Side
) -> None:
    seen: list[Any] = []
    failing = Step(fail(error), side)
    if side is Side.LOOP:
        # Python makes a RuntimeError of a StopIteration that leaves a coroutine.
        if isinstance(error, StopIteration | StopAsyncIteration):
            return
        failing = awaited(fail(error))
    everywhere(runs, passing_on([failing, Step(seen.append, Side.ANY)]))
    assert seen == [error]
    # No step's exception becomes the context of another's.
    assert error.__context__ is None


@pytest.mark.parametrize("runs", ["on the loop", "in a thread"])
@pytest.mark.parametrize("side", [Side.THREAD, Side.ANY])
def test_run_raises_what_the_way_raises(runs: str, side: Side) -> None:
    with pytest.raises(ValueError, match="of the way"):
        everywhere(runs, passing_on([Step(fail(ValueError("of the way")), side)]))


def everywhere(runs: str, way: Way) -> Any:
    if runs == "on the loop":
        return asyncio.run(run(way))

    async def main() -> Any:
        return await sync_to_async(run_in_thread)(way)

    return asyncio.run(main())


def test_run_raises_at_once_what_is_no_exception() -> None:
    events: list[str] = []

    def way() -> Way:
        try:
            yield Step(lambda: (_ for _ in ()).throw(KeyboardInterrupt()), Side.ANY), ()
        except Exception:
            raise AssertionError from None
        finally:
            events.append("closed")

    with pytest.raises(KeyboardInterrupt):
        async_to_sync(run)(way())
    assert events == ["closed"]


# --- Context variables ---------------------------------------------------------------

variable = contextvars.ContextVar("variable", default="unset")


def test_run_has_one_context_for_all_steps_tokens_included() -> None:
    tokens: list[contextvars.Token[str]] = []
    seen: list[str] = []

    def enter(text: str) -> None:
        tokens.append(variable.set(text))

    def leave() -> None:
        seen.append(variable.get())
        variable.reset(tokens.pop())

    def marked(call: Callable[..., Any]) -> Step:
        return Step(call, Side.ANY, keeps_tokens=True)

    def way() -> Way:
        yield Step(enter, Side.THREAD), ("thread",)
        yield Step(asyncio.sleep, Side.LOOP), (0,)
        yield marked(enter), ("loop",)
        yield Step(enter, Side.THREAD), ("thread again",)
        yield Step(asyncio.sleep, Side.LOOP), (0,)
        yield marked(leave), ()
        yield Step(leave, Side.THREAD), ()
        yield Step(asyncio.sleep, Side.LOOP), (0,)
        yield marked(leave), ()
        seen.append(variable.get())

    async def main() -> None:
        async with ThreadSensitiveContext():
            await run(way())
        seen.append(variable.get())

    asyncio.run(main())
    assert seen == ["thread again", "loop", "thread", "unset", "unset"]


# --- Cancellation --------------------------------------------------------------------


def test_run_cancelled_where_a_coroutine_waits_ends_cancelled_and_closes_the_way() -> None:
    events: list[str] = []

    async def wait_for_ever() -> None:
        events.append("waits")
        await asyncio.Event().wait()

    def way() -> Way:
        try:
            yield Step(wait_for_ever, Side.LOOP), ()
        finally:
            events.append("closed")

    async def main() -> None:
        task = asyncio.create_task(run(way()))
        while not events:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert events == ["waits", "closed"]


def test_run_cancelled_in_a_thread_goes_on_there_to_the_next_coroutine() -> None:
    """As below a WSGI server: what follows on the sync side, such as the saving of a session, is done."""
    reached, go_on = threading.Event(), threading.Event()
    events: list[Any] = []

    def stay() -> None:
        reached.set()
        wait(go_on)
        events.append(cancelled())

    async def never() -> None:
        raise AssertionError

    def way() -> Way:
        try:
            yield Step(stay, Side.THREAD), ()
            yield Step(events.append, Side.THREAD), ("saved",)
            yield Step(never, Side.LOOP), ()
        finally:
            events.append("closed")

    async def main() -> None:
        async with ThreadSensitiveContext():
            task = asyncio.create_task(run(way()))
            assert await asyncio.to_thread(reached.wait, LIMIT_SECONDS)
            task.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert events == [True, "saved", "closed"]


@pytest.mark.parametrize("turns", range(12))
def test_run_cancelled_after_any_number_of_turns_closes_the_way(turns: int) -> None:
    track = Track("TLTLLT")

    async def main() -> None:
        async with ThreadSensitiveContext():
            task = asyncio.create_task(run(track.way()))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait((task,))

    asyncio.run(main())
    # Before its first turn a task has not begun, and so neither has the way.
    assert track.closed or turns == 0
