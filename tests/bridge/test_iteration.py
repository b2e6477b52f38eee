"""Sync iterables in async code: threads, order, bounds, context variables, endings; and async ones in sync code."""

import asyncio
import contextlib
import contextvars
import functools
import inspect
import logging
import os
import threading
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, NoReturn

import pytest

from django_asyncbridge.bridge import _fork, _loop_iteration, _state, _thread_source
from django_asyncbridge.bridge.iteration import (
    LoopIterator,
    ThreadIterator,
    iterate_in_thread,
    iterate_on_loop,
)
from django_asyncbridge.bridge.sync import (
    ThreadSensitiveContext,
    async_to_sync,
    iscoroutinefunction,
    sync_to_async,
)
from tests.bridge import LIMIT_SECONDS, Tracked, wait, without_gc
from tests.support import run_child, run_in_thread

current = sync_to_async(threading.current_thread)
var: contextvars.ContextVar[str] = contextvars.ContextVar("var")


def on_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `main` on an event loop in a thread of its own."""
    return run_in_thread(lambda: asyncio.run(main()))


def count(made: list[int], end: int = 1000) -> Iterator[int]:
    """Yield numbers, and note each as it is made."""
    for number in range(end):  # pragma: no branch  # nobody gets as far as the end
        made.append(number)
        yield number


class Body:
    """A generator with a `finally`, and what it did and where."""

    def __init__(self, error_at_close: Exception | None = None) -> None:
        self.closed_in: list[threading.Thread] = []
        self.closed = threading.Event()
        self.error_at_close = error_at_close

    def endless(self) -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            self._close()

    async def aendless(self) -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 1
        finally:
            self._close()

    def _close(self) -> None:
        self.closed_in.append(threading.current_thread())
        self.closed.set()
        if self.error_at_close is not None:
            raise self.error_at_close


def fail() -> None:
    raise LookupError


async def turns(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def until(event: threading.Event) -> None:
    """Wait for what another thread is about to do, without blocking the loop."""
    assert await asyncio.to_thread(event.wait, LIMIT_SECONDS)


# --- In a thread: what is refused ------------------------------------------------


# What is refused never runs.


def generate() -> Iterator[int]:
    yield 1  # pragma: no cover


async def agenerate() -> AsyncIterator[int]:
    yield 1  # pragma: no cover


@pytest.mark.parametrize(
    ("iterable", "hint"),
    [
        (1, "not 1$"),
        (agenerate(), "'async for' as it is$"),
        (generate, "call the generator function$"),
    ],
    ids=["number", "async-generator", "generator-function"],
)
def test_iterate_in_thread_of_no_iterable_raises_and_says_what_to_do(
    iterable: Any, hint: str
) -> None:
    with pytest.raises(TypeError, match=hint):
        iterate_in_thread(iterable)


@pytest.mark.parametrize(
    ("ahead", "error"),
    [(-1, ValueError), (True, TypeError), (1.5, TypeError), (None, TypeError)],
)
def test_iterate_in_thread_with_unfit_ahead_raises(ahead: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="ahead="):
        iterate_in_thread([], ahead=ahead)


def test_iteration_in_an_executor_has_to_be_not_thread_sensitive() -> None:
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(TypeError, match="thread_sensitive=False"):
            iterate_in_thread([], executor=executor)
        with pytest.raises(TypeError, match="thread_sensitive=False"):
            sync_to_async(generate, executor=executor)  # type: ignore[call-overload]  # what is tested


# --- In a thread: items, errors, where and how far ahead -----------------------------


class Letters:
    """An iterable by the old protocol."""

    def __getitem__(self, index: int) -> str:
        return "abc"[index]


class Failing:
    """An iterable that cannot be iterated over."""

    def __iter__(self) -> Iterator[int]:
        raise LookupError(threading.current_thread())


@pytest.mark.parametrize("thread_sensitive", [True, False])
@pytest.mark.parametrize("ahead", [0, 1, 5, 500])
def test_thread_iterator_yields_every_item_in_order(ahead: int, thread_sensitive: bool) -> None:
    async def main() -> None:
        items = iterate_in_thread(range(300), ahead=ahead, thread_sensitive=thread_sensitive)
        assert [item async for item in items] == list(range(300))
        assert await anext(items, None) is None

    on_loop(main)


def test_thread_iterator_takes_whatever_iter_takes() -> None:
    async def main() -> None:
        assert [item async for item in iterate_in_thread("ab")] == ["a", "b"]
        letters: Any = Letters()
        assert [letter async for letter in iterate_in_thread(letters)] == ["a", "b", "c"]
        empty: tuple[int, ...] = ()
        assert [number async for number in iterate_in_thread(empty)] == []

    on_loop(main)


def test_thread_iterator_error_of_iter_is_raised_by_the_first_item() -> None:
    async def main() -> None:
        items = iterate_in_thread(Failing())
        with pytest.raises(LookupError) as raised:
            await anext(items)
        assert raised.value.args == (await current(),)
        assert await anext(items, "end") == "end"

    on_loop(main)


def test_thread_iterator_error_comes_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield from range(40)
        raise LookupError("late")

    async def main() -> None:
        items = iterate_in_thread(failing(), ahead=100)
        assert [await anext(items) for _ in range(40)] == list(range(40))
        with pytest.raises(LookupError, match="late"):
            await anext(items)

    on_loop(main)


def test_thread_iterator_has_one_item_made_first_and_then_up_to_twice_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_thread_source, "_clock", lambda: 0.0)

    async def main() -> None:
        made: list[int] = []
        ahead = []
        items = iterate_in_thread(count(made), ahead=6)
        for number in range(21):
            assert await anext(items) == number
            # The thread has come to the end of its crossing.
            await current()
            ahead.append(len(made) - number - 1)
        await items.aclose()
        # Crossings of 1, 2, 4, 7, 7 items.
        assert ahead == [0, 1, 0, 3, 2, 1, 0, *(6, 5, 4, 3, 2, 1, 0) * 2]

    on_loop(main)


def test_thread_iterator_gives_the_home_thread_back_after_a_millisecond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(_thread_source, "_clock", lambda: next(clock))

    async def ahead(executor: ThreadPoolExecutor | None) -> int:
        made: list[int] = []
        items = iterate_in_thread(
            count(made), ahead=3, thread_sensitive=executor is None, executor=executor
        )
        got = [await anext(items) for _ in range(4)]
        # The thread has come to the end of its crossing.
        await (
            current()
            if executor is None
            else asyncio.wrap_future(executor.submit(threading.current_thread))
        )
        await items.aclose()
        return len(made) - len(got)

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            assert await ahead(None) == 0
            assert await ahead(executor) == 3

    on_loop(main)


def test_thread_iterator_in_an_executor_runs_and_is_closed_there() -> None:
    async def main() -> None:
        body = Body()
        with ThreadPoolExecutor(1) as executor:
            wrapped = sync_to_async(body.endless, thread_sensitive=False, executor=executor)
            async with wrapped() as items:
                assert await anext(items) == 1
            assert body.closed_in == [executor.submit(threading.current_thread).result()]

    on_loop(main)


def test_thread_iterator_stays_in_a_context_that_its_consumer_has_entered() -> None:
    """The home is that of whoever asks; a second one's, in another place, is refused."""
    body = Body()

    async def main() -> None:
        items = iterate_in_thread(body.endless(), ahead=0)
        async with ThreadSensitiveContext():
            home = await current()
            await anext(items)
            await anext(items)
        with pytest.raises(RuntimeError, match=r"endless was begun in .* would have to go on in"):
            await anext(items)
        # Closed all the same, and over.
        assert len(body.closed_in) == 1
        assert body.closed_in != [home]
        assert await anext(items, "end") == "end"

    on_loop(main)


def test_thread_iterator_where_its_thread_waits_for_it_raises_instead() -> None:
    def deadlock() -> None:
        async def main() -> None:
            with pytest.raises(RuntimeError, match="would deadlock"):
                await anext(iterate_in_thread(generate()))

        asyncio.run(main())

    on_loop(sync_to_async(deadlock))


def test_thread_iterator_for_two_tasks_at_once_raises_in_the_second() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[int]:
        asked.set()
        wait(go_on)
        yield 1

    async def main() -> None:
        items = iterate_in_thread(slow())

        async def first() -> int:
            return await anext(items)

        task = asyncio.create_task(first())
        await until(asked)
        with pytest.raises(RuntimeError, match="already running"):
            await anext(items)
        with pytest.raises(RuntimeError, match="already running"):
            await items.aclose()
        go_on.set()
        assert await task == 1

    on_loop(main)


# --- In a thread: context variables -----------------------------------------------


@pytest.mark.parametrize("ahead", [0, 16])
def test_thread_iterator_and_consumer_see_each_others_context_variables(ahead: int) -> None:
    """As in a plain ``for`` loop, item for item, however many are made ahead; tokens hold."""

    def body() -> Iterator[str]:
        seen = var.get()
        token = var.set("0")
        for number in range(1, 40):
            yield seen
            seen = var.get()
            var.set(str(number))
        var.reset(token)

    async def main() -> None:
        var.set("consumer's")
        seen = [(item, var.get()) async for item in iterate_in_thread(body(), ahead=ahead)]
        assert seen == [("consumer's", "0"), *((str(n - 1), str(n)) for n in range(1, 39))]
        assert var.get() == "consumer's"

    on_loop(main)


def test_thread_iterator_sees_what_the_consumer_changes_between_items() -> None:
    def body() -> Iterator[str]:
        while True:
            yield var.get("unset")

    async def main() -> None:
        async with iterate_in_thread(body(), ahead=0) as items:
            assert await anext(items) == "unset"
            token = var.set("one")
            assert await anext(items) == "one"
            var.reset(token)
            assert await anext(items) == "unset"

    on_loop(main)


def test_thread_iterator_that_unsets_a_variable_at_its_end_leaves_none() -> None:
    def body() -> Iterator[int]:
        token = var.set("body's")
        try:
            yield 1
            yield 2
        finally:
            var.reset(token)

    async def main() -> None:
        async for _ in iterate_in_thread(body()):
            assert var.get() == "body's"
        assert var.get(None) is None
        async with iterate_in_thread(body()) as items:
            await anext(items)
            assert var.get() == "body's"
        assert var.get(None) is None

    on_loop(main)


def test_thread_iterator_in_a_given_context_keeps_its_variables_to_itself() -> None:
    context = contextvars.Context()

    def body() -> Iterator[str]:
        yield var.get("unset")
        var.set("body's")
        yield var.get()

    async def main() -> None:
        var.set("consumer's")
        wrapped = sync_to_async(body, context=context)
        assert [item async for item in wrapped()] == ["unset", "body's"]
        assert var.get() == "consumer's"

    on_loop(main)
    assert context[var] == "body's"


# --- In a thread: endings -----------------------------------------------------------


class Closable(Iterator[int]):
    """Its own iterator, as an open file or a database cursor is."""

    closed = False

    def __next__(self) -> int:
        return 1

    def close(self) -> None:
        self.closed = True


def test_thread_iterator_closes_what_iter_made_but_not_an_iterator_of_the_caller() -> None:
    class Opens:
        def __iter__(self) -> Iterator[int]:
            return closable

    async def main() -> None:
        for iterable in (closable, Opens()):
            assert not closable.closed
            async with iterate_in_thread(iterable) as items:
                await anext(items)

    closable = Closable()
    on_loop(main)
    assert closable.closed


def test_thread_iterator_closed_before_its_first_item_runs_nothing() -> None:
    body = Body()

    async def main() -> None:
        async with iterate_in_thread(body.endless()) as items:
            pass
        assert await anext(items, "end") == "end"
        await items.aclose()

    on_loop(main)
    assert body.closed_in == []


def test_thread_iterator_raises_what_closing_raises() -> None:
    body = Body(LookupError("at close"))

    async def main() -> None:
        items = iterate_in_thread(body.endless())
        await anext(items)
        with pytest.raises(LookupError, match="at close"):
            await items.aclose()
        await items.aclose()

    on_loop(main)


def test_thread_iterator_dropped_in_the_middle_is_closed_in_its_thread_by_the_loop() -> None:
    body = Body()

    async def consume() -> threading.Thread:
        async with ThreadSensitiveContext():
            assert await anext(iterate_in_thread(body.endless())) == 1
            # In another context than the one of the loop's callback.
            home = await current()
            await until(body.closed)
            return home

    assert [on_loop(consume)] == body.closed_in


def test_thread_iterator_closed_from_elsewhere_is_closed_in_its_thread() -> None:
    body = Body()

    async def main() -> None:
        items = iterate_in_thread(body.endless())
        async with ThreadSensitiveContext():
            await anext(items)
            home = await current()
            closing = contextvars.Context().run(asyncio.ensure_future, items.aclose())
            await closing
        assert body.closed_in == [home]

    on_loop(main)


def test_thread_iterator_closed_while_it_runs_ahead_waits_and_drops_what_was_made() -> None:
    body = Body()
    ahead, go_on = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        try:
            yield 0
            yield 1
            ahead.set()
            wait(go_on)
            yield 2
        finally:
            body._close()

    async def main() -> None:
        items = iterate_in_thread(numbers(), thread_sensitive=False)
        assert [await anext(items), await anext(items)] == [0, 1]
        await until(ahead)
        closing = asyncio.ensure_future(items.aclose())
        await turns()
        assert not closing.done()
        assert not body.closed_in
        go_on.set()
        await closing
        assert len(body.closed_in) == 1

    on_loop(main)


def test_thread_iterator_of_a_loop_that_was_closed_stops_running_ahead() -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    buffer = _thread_source.Buffer[int]()
    buffer.loop, buffer.wanted = loop, True
    buffer.wake_from_thread()
    assert buffer.stopped
    made: list[int] = []
    source = _thread_source.Source(count(made), buffer, 1.0, pinned=True)
    source.produce(10)
    assert made == [0]


# --- In a thread: cancellation ----------------------------------------------------------


class Blocking(Body):
    """A generator whose second item waits for the test."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.error = error

    def numbers(self) -> Iterator[int]:
        try:
            yield 1
            self.entered.set()
            wait(self.go_on)
            if self.error is not None:
                raise self.error
            yield 2
        finally:
            self._close()


async def consume(iterable: Iterator[int]) -> None:
    async for _ in iterate_in_thread(iterable, ahead=0):
        pass


@pytest.mark.parametrize("times", [1, 2])
def test_cancelled_consumer_waits_for_the_item_and_the_closing(times: int) -> None:
    body = Blocking()

    async def main() -> None:
        task = asyncio.create_task(consume(body.numbers()))
        await until(body.entered)
        for _ in range(times):
            task.cancel()
            await turns()
        assert not task.done()
        assert not body.closed_in
        body.go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()
        assert body.closed_in == [await current()]

    on_loop(main)


def test_cancelled_consumer_of_an_iterable_that_raises_has_that_as_the_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    body = Blocking(LookupError("late"))

    async def main() -> None:
        task = asyncio.create_task(consume(body.numbers()))
        await until(body.entered)
        task.cancel()
        body.go_on.set()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert raised.value.__cause__ is body.error
        assert task.cancelled()

    on_loop(main)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "numbers raised after its iteration was cancelled" in record.getMessage()
    caplog.clear()


def test_cancelled_consumer_whose_thread_is_busy_elsewhere_withdraws_the_iteration() -> None:
    busy, free = threading.Event(), threading.Event()
    made: list[int] = []

    def occupy() -> None:
        busy.set()
        wait(free)

    async def main() -> None:
        async with ThreadSensitiveContext():
            occupying = asyncio.create_task(sync_to_async(occupy)())
            await until(busy)
            task = asyncio.create_task(consume(count(made)))
            await turns()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            free.set()
            await occupying
            await current()
        assert made == []

    on_loop(main)


def test_cancellation_reaches_what_the_iterable_waits_for() -> None:
    waiting = threading.Event()
    seen: list[str] = []

    async def for_ever() -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("below")
            raise

    def body() -> Iterator[int]:
        try:
            async_to_sync(for_ever)()
        finally:
            seen.append("body")
        yield 1  # pragma: no cover  # it is cancelled

    async def main() -> None:
        task = asyncio.create_task(consume(body()))
        await until(waiting)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    on_loop(main)
    assert seen == ["below", "body"]


def test_cancelled_crossing_cancels_the_consumer() -> None:
    """Whoever cancels every task of the loop cancels that one too."""
    body = Blocking()

    async def main() -> None:
        task = asyncio.create_task(consume(body.numbers()))
        await until(body.entered)
        (crossing,) = asyncio.all_tasks() - {task, asyncio.current_task()}
        crossing.cancel()
        body.go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()

    on_loop(main)
    assert len(body.closed_in) == 1


def test_cancelled_aclose_takes_effect_when_the_generator_is_closed() -> None:
    closing, go_on = threading.Event(), threading.Event()

    def body() -> Iterator[int]:
        try:
            yield 1
        finally:
            closing.set()
            wait(go_on)

    async def main() -> None:
        items = iterate_in_thread(body())
        await anext(items)
        task = asyncio.ensure_future(items.aclose())
        await until(closing)
        task.cancel()
        await turns()
        assert not task.done()
        go_on.set()
        await asyncio.wait([task])
        assert task.cancelled()

    on_loop(main)


# --- In a thread: throwing into a generator -------------------------------------------------


def test_wrapped_generator_function_is_good_for_an_async_context_manager() -> None:
    seen: list[str] = []

    @contextlib.asynccontextmanager
    @sync_to_async
    def manager(swallow: bool) -> Iterator[threading.Thread]:
        seen.append("enter")
        try:
            yield threading.current_thread()
        except LookupError:
            seen.append("error")
            if not swallow:
                raise
        finally:
            seen.append("exit")

    async def main() -> None:
        async with manager(True) as thread:
            assert thread is await current()
            assert seen == ["enter"]
            fail()
        assert seen == ["enter", "error", "exit"]
        with pytest.raises(LookupError):
            async with manager(False):
                fail()
        async with manager(False):
            pass
        assert seen[3:] == ["enter", "error", "exit", "enter", "exit"]

    on_loop(main)


def test_thread_iterator_throw_comes_where_the_generator_stands_and_gives_its_next_item() -> None:
    def body() -> Iterator[object]:
        number = 0
        while True:
            try:
                yield number
            except LookupError as error:
                yield error
            number += 1

    async def main() -> None:
        items = iterate_in_thread(body(), thread_sensitive=False, ahead=1)
        assert [await anext(items), await anext(items)] == [0, 1]
        error = LookupError()
        assert await items.athrow(error) is error
        # Item 2 was made ahead and is lost.
        assert await anext(items) == 3
        await items.aclose()

    on_loop(main)


@pytest.mark.parametrize("items_made", [1, 2])
def test_thread_iterator_throw_where_nothing_can_catch_it_is_the_end(items_made: int) -> None:
    error = LookupError()

    async def main() -> None:
        for iterable in (iter([1, 2, 3]), iter([1, 2])):
            items = iterate_in_thread(iterable, thread_sensitive=False)
            for _ in range(items_made):
                await anext(items)
            with pytest.raises(LookupError) as raised:
                await items.athrow(error)
            assert raised.value is error
            assert await anext(items, "end") == "end"

    on_loop(main)


# --- In a thread: nothing is kept alive -----------------------------------------------------


@pytest.mark.parametrize("cancelled", [False, True])
def test_thread_iterator_errors_keep_nothing_alive(cancelled: bool) -> None:
    body = Blocking()

    def failing(tracked: Tracked) -> Iterator[int]:
        yield from body.numbers()
        raise LookupError

    async def main() -> None:
        tracked = Tracked()
        reference = weakref.ref(tracked)
        task = asyncio.create_task(consume(failing(tracked)))
        del tracked
        await until(body.entered)
        if cancelled:
            task.cancel()
        body.go_on.set()
        await asyncio.wait([task])
        assert cancelled or isinstance(task.exception(), LookupError)
        del task
        # The thread has forgotten its last call.
        await current()
        assert reference() is None

    with without_gc():
        on_loop(main)


def test_thread_iterator_error_that_was_thrown_in_keeps_nothing_alive() -> None:
    async def main() -> None:
        items = iterate_in_thread(Body().endless())
        await anext(items)
        with contextlib.suppress(LookupError):
            await items.athrow(UnusualError())

    with without_gc():
        on_loop(main)
        assert UnusualError.alive() == 0


class UnusualError(LookupError):
    """An error that one can count."""

    instances: ClassVar["weakref.WeakSet[UnusualError]"] = weakref.WeakSet()

    def __init__(self) -> None:
        self.instances.add(self)

    @classmethod
    def alive(cls) -> int:
        return len(cls.instances)


# --- On a loop: what is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("iterable", "hint"),
    [
        (1, "not 1$"),
        ([], "'for' as it is$"),
        (agenerate, "call the async generator function$"),
    ],
    ids=["number", "list", "async-generator-function"],
)
def test_iterate_on_loop_of_no_async_iterable_raises_and_says_what_to_do(
    iterable: Any, hint: str
) -> None:
    with pytest.raises(TypeError, match=hint):
        iterate_on_loop(iterable)


def test_loop_iterator_in_a_thread_that_runs_a_loop_raises() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="use 'async for' here"):
            next(iterate_on_loop(agenerate()))

    on_loop(main)


def test_loop_iterator_in_another_thread_than_the_one_that_began_raises() -> None:
    with iterate_on_loop(acount()) as items:
        assert next(items) == 0
        with pytest.raises(RuntimeError, match=r"was begun in .* and cannot go on in"):
            run_in_thread(lambda: next(items))
        assert next(items) == 1


def test_loop_iterator_made_in_another_thread_belongs_to_the_one_that_begins() -> None:
    items = run_in_thread(lambda: iterate_on_loop(acount()))
    assert [next(items), next(items)] == [0, 1]
    items.close()


def test_loop_iterator_advanced_from_inside_raises() -> None:
    @sync_to_async
    def advance() -> None:
        with pytest.raises(ValueError, match="already executing"):
            next(items)

    async def body() -> AsyncIterator[int]:
        await advance()
        yield 1

    items = iterate_on_loop(body())
    assert list(items) == [1]


def test_loop_iterator_after_its_loop_waits_no_more_raises() -> None:
    body = Body()
    kept: list[LoopIterator[int]] = []

    @sync_to_async
    def begin() -> None:
        kept.append(iterate_on_loop(body.aendless()))
        next(kept[0])

    @sync_to_async
    def go_on() -> int:
        return next(kept[0])

    async def main() -> None:
        async with ThreadSensitiveContext():
            await begin()
            # Another call from the same loop is as good.
            assert await go_on() == 1

            def elsewhere() -> None:
                with pytest.raises(RuntimeError, match="does not wait for this thread any more"):
                    asyncio.run(other())

            async def other() -> None:
                await go_on()

            await asyncio.to_thread(elsewhere)

    on_loop(main)
    # The end of the loop has closed it.
    assert len(body.closed_in) == 1
    kept[0].close()
    with pytest.raises(StopIteration):
        next(kept[0])


def test_loop_iterator_whose_driver_was_cancelled_raises_and_does_not_just_end() -> None:
    body = Body()

    async def main() -> None:
        def use() -> None:
            items = iterate_on_loop(body.aendless())
            next(items)
            async_to_sync(cancel_others)()
            assert len(body.closed_in) == 1
            with pytest.raises(RuntimeError, match="has ended, and with it the iteration"):
                next(items)
            assert next(items, "end") == "end"

        async def cancel_others() -> None:
            (driver,) = asyncio.all_tasks() - {asyncio.current_task(), caller}
            driver.cancel()
            await asyncio.wait([driver])

        caller = asyncio.current_task()
        await sync_to_async(use)()

    on_loop(main)


# --- On a loop: items, errors, where -----------------------------------------------------------


async def acount(end: int = 1000) -> AsyncIterator[int]:
    for number in range(end):
        await asyncio.sleep(0)
        yield number


def everywhere(function: Callable[[], Any]) -> None:
    """Call `function` where no loop waits, and where one does."""
    run_in_thread(function)
    on_loop(sync_to_async(function))


def test_loop_iterator_yields_every_item_in_order() -> None:
    def check() -> None:
        items = iterate_on_loop(acount(5))
        assert iter(items) is items
        assert list(items) == [0, 1, 2, 3, 4]
        assert list(items) == []

    everywhere(check)


def test_loop_iterator_at_the_top_has_one_loop_and_one_task_to_its_end() -> None:
    seen: list[object] = []

    async def body() -> AsyncIterator[int]:
        for number in range(3):
            seen.append((asyncio.get_running_loop(), asyncio.current_task()))
            yield number

    def check() -> None:
        before = set(threading.enumerate())
        items = iterate_on_loop(body())
        next(items)
        (thread,) = set(threading.enumerate()) - before
        assert thread.name.startswith("asyncbridge-iteration-")
        assert list(items) == [1, 2]
        assert not thread.is_alive()

    run_in_thread(check)
    assert len(set(seen)) == 1


def test_loop_iterator_force_new_loop_leaves_the_waiting_loop_alone() -> None:
    async def body() -> AsyncIterator[tuple[asyncio.AbstractEventLoop, threading.Thread]]:
        yield asyncio.get_running_loop(), await current()

    async def main() -> None:
        def check() -> None:
            ((loop, thread),) = async_to_sync(force_new_loop=True)(body)()
            assert loop is not waiting
            assert thread is threading.current_thread()

        waiting = asyncio.get_running_loop()
        await sync_to_async(check)()

    on_loop(main)


def test_loop_iterator_below_a_stopped_loop_has_one_of_its_own() -> None:
    loop = asyncio.new_event_loop()

    def check() -> None:
        _state.set_caller_of_thread((loop, _fork.pid(), None))
        assert list(iterate_on_loop(acount(2))) == [0, 1]

    run_in_thread(check)
    loop.close()


def test_loop_iterator_goes_on_between_items_and_may_hold_a_timeout_and_tasks() -> None:
    """What it has started runs on while nobody waits; a task group's parent stays the same task."""
    filled = threading.Event()

    async def body() -> AsyncIterator[int]:
        queue: asyncio.Queue[int] = asyncio.Queue()

        async def fill() -> None:
            for number in range(3):
                await asyncio.sleep(0)
                queue.put_nowait(number)
            filled.set()

        async with asyncio.timeout(LIMIT_SECONDS), asyncio.TaskGroup() as group:
            group.create_task(fill())
            yield -1
            for _ in range(3):
                yield await queue.get()

    def check() -> None:
        items = iterate_on_loop(body())
        assert next(items) == -1
        wait(filled)
        assert list(items) == [0, 1, 2]

    run_in_thread(check)


def test_loop_iterator_tasks_of_earlier_steps_find_the_thread_that_waits_now() -> None:
    async def body() -> AsyncIterator[threading.Thread]:
        ask = asyncio.Event()

        async def later() -> threading.Thread:
            await ask.wait()
            return await current()

        task = asyncio.create_task(later())
        yield await current()
        ask.set()
        yield await task

    def check() -> None:
        assert list(iterate_on_loop(body())) == [threading.current_thread()] * 2

    run_in_thread(check)


def test_loop_iterator_error_is_the_end() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise LookupError("late")

    def check() -> None:
        items = iterate_on_loop(failing())
        assert next(items) == 1
        with pytest.raises(LookupError, match="late"):
            next(items)
        assert next(items, None) is None

    everywhere(check)


def test_loop_iterator_of_an_iterable_without_an_iterator_raises_what_that_raises() -> None:
    class Failing:
        def __aiter__(self) -> AsyncIterator[int]:
            raise LookupError(threading.current_thread())

    def check() -> None:
        with pytest.raises(LookupError):
            next(iterate_on_loop(Failing()))

    everywhere(check)


def test_loop_iterator_and_caller_see_each_others_context_variables() -> None:
    async def body() -> AsyncIterator[str]:
        token = var.set("body's")
        yield var.get()
        seen = var.get()
        var.reset(token)
        yield seen

    def check() -> None:
        items = iterate_on_loop(body())
        assert next(items) == "body's"
        assert var.get() == "body's"
        var.set("caller's")
        assert next(items) == "caller's"
        assert var.get(None) is None
        items.close()

    everywhere(lambda: contextvars.Context().run(check))


# --- On a loop: endings --------------------------------------------------------------------------


class AsyncClosable(AsyncIterator[int]):
    """Its own iterator, which belongs to the caller."""

    closed = False

    async def __anext__(self) -> int:
        return 1

    async def aclose(self) -> None:
        self.closed = True


def test_loop_iterator_closes_what_aiter_made_but_not_an_iterator_of_the_caller() -> None:
    class Opens:
        def __aiter__(self) -> AsyncIterator[int]:
            return closable

    def check() -> None:
        for iterable in (closable, Opens()):
            assert not closable.closed
            with iterate_on_loop(iterable) as items:
                next(items)

    closable = AsyncClosable()
    run_in_thread(check)
    assert closable.closed


def test_loop_iterator_close_closes_the_generator_before_it_returns() -> None:
    body = Body()

    def check() -> None:
        body.closed_in.clear()
        with iterate_on_loop(body.aendless()) as items:
            next(items)
        assert len(body.closed_in) == 1
        items.close()
        assert next(items, None) is None

    everywhere(check)


def test_loop_iterator_close_raises_what_closing_raises() -> None:
    def check() -> None:
        items = iterate_on_loop(Body(LookupError("at close")).aendless())
        next(items)
        with pytest.raises(LookupError, match="at close"):
            items.close()

    everywhere(check)


def test_loop_iterator_closed_before_its_first_item_runs_nothing() -> None:
    body = Body()
    with iterate_on_loop(body.aendless()) as items:
        pass
    assert list(items) == []
    assert body.closed_in == []


def test_loop_iterator_on_its_own_loop_ends_what_it_has_left() -> None:
    """Tasks are cancelled and awaited, generators closed, while the thread still waits."""
    seen: list[object] = []
    kept: list[Any] = []

    async def left() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(await current())

    async def body() -> AsyncIterator[int]:
        kept.append(asyncio.create_task(left()))
        kept.append(left_generator())
        yield await anext(kept[1])

    async def left_generator() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append("generator")

    def check() -> None:
        assert list(iterate_on_loop(body())) == [1]
        assert set(seen) == {"generator", threading.current_thread()}

    run_in_thread(check)


def test_loop_iterator_reports_the_error_of_a_task_it_has_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def left() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("left")

    async def body() -> AsyncIterator[int]:
        tasks.append(asyncio.create_task(left()))
        await asyncio.sleep(0)
        yield 1

    run_in_thread(lambda: list(iterate_on_loop(body())))
    (record,) = caplog.records
    assert "a task that an iteration left behind" in record.getMessage()
    caplog.clear()


def end_of_iteration_threads() -> None:
    """Wait until the threads of iterations that were dropped have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("asyncbridge-iteration-"):
            thread.join(LIMIT_SECONDS)
            assert not thread.is_alive()


def test_loop_iterator_dropped_in_the_middle_has_its_generator_closed_and_its_loop_ended() -> None:
    body = Body()

    def check() -> None:
        assert next(iterate_on_loop(body.aendless())) == 1

    run_in_thread(check)
    end_of_iteration_threads()
    assert len(body.closed_in) == 1


def test_loop_iterator_dropped_below_a_waiting_loop_is_closed_there() -> None:
    body = Body()

    async def main() -> None:
        def drop() -> None:
            assert next(iterate_on_loop(body.aendless())) == 1

        await sync_to_async(drop)()
        await until(body.closed)
        assert body.closed_in == [threading.current_thread()]

    on_loop(main)


def test_loop_iterator_dropped_reports_what_closing_raises(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def check() -> None:
        next(iterate_on_loop(Body(LookupError("at close")).aendless()))

    run_in_thread(check)
    end_of_iteration_threads()
    (record,) = caplog.records
    assert "nobody waits for any more: Body.aendless" in record.getMessage()
    caplog.clear()


@pytest.mark.parametrize("items", [None, 0, 1])
def test_driver_that_is_abandoned_ends_its_own_loop(items: int | None) -> None:
    """Before its first step, between two steps, and after the last."""
    own = _loop_iteration.IterationLoop()
    driver: _loop_iteration.Driver[int] = _loop_iteration.Driver(acount(items or 0))
    driver.own = own
    if items is not None:
        step = asyncio.run_coroutine_threadsafe(driver.step(None), own.loop)
        step.result(LIMIT_SECONDS)
    driver.abandon()
    own.join(LIMIT_SECONDS)
    assert own.loop.is_closed()
    own.stop()
    driver.abandon()


def test_loop_iterator_for_which_no_loop_can_be_made_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_loop() -> NoReturn:
        raise OSError("too many open files")

    items = iterate_on_loop(acount())
    monkeypatch.setattr(asyncio, "new_event_loop", no_loop)
    with pytest.raises(OSError, match="too many open files"):
        next(items)


def test_loop_iterator_whose_loop_is_ended_by_a_task_raises_what_ended_it() -> None:
    """SystemExit in a task goes through the event loop, as in any other."""

    async def leave() -> None:
        raise SystemExit

    async def body() -> AsyncIterator[int]:
        kept.append(asyncio.create_task(leave()))
        await asyncio.Event().wait()
        yield 1  # pragma: no cover  # it is cancelled

    kept: list[asyncio.Task[None]] = []
    items = iterate_on_loop(body())
    with pytest.raises(SystemExit):
        next(items)
    assert next(items, "end") == "end"
    assert isinstance(kept.pop().exception(), SystemExit)
    end_of_iteration_threads()


def test_driver_that_was_never_begun_has_nothing_to_abandon() -> None:
    driver: _loop_iteration.Driver[int] = _loop_iteration.Driver(acount())
    driver.abandon()
    assert not driver.over


def test_driver_that_has_ended_on_a_loop_of_others_has_nothing_to_abandon() -> None:
    async def main() -> None:
        driver: _loop_iteration.Driver[int] = _loop_iteration.Driver(acount(0))
        await driver.step(None)
        await turns()
        driver.abandon()
        await turns()

    on_loop(main)


def test_loop_iterator_whose_step_is_cut_off_cancels_it_and_is_over() -> None:
    """Cut off where `AsyncToSync` can wait no more: what runs there is cancelled, and nobody waits for it."""
    body = Waiting()

    class CutOff(BaseException):
        """What a signal handler raises."""

    def check() -> None:
        items = iterate_on_loop(body.numbers())
        next(items)
        step = items._step
        step_loop = items._loop
        assert step is not None
        assert step_loop is not None

        def cut_off(request: Any) -> NoReturn:
            step_loop.call_soon_threadsafe(lambda: asyncio.ensure_future(step.awaitable(request)))
            wait(body.waiting)
            raise CutOff

        items._step = cut_off  # type: ignore[assignment]  # in its place
        with pytest.raises(CutOff):
            next(items)
        assert next(items, "end") == "end"

    run_in_thread(check)
    end_of_iteration_threads()
    assert body.seen == ["cancelled", "closed"]


# --- On a loop: cancellation -------------------------------------------------------------------


class Waiting:
    """An async generator whose second item never comes."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.seen: list[str] = []

    async def numbers(self, survive: bool = False, error: Exception | None = None) -> Any:
        try:
            yield 1
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.seen.append("cancelled")
                if error is not None:
                    raise error from None
                if not survive:
                    raise
            yield 2
        finally:
            self.seen.append("closed")


@pytest.mark.parametrize("survive", [False, True])
@pytest.mark.parametrize("force_new_loop", [False, True])
def test_cancelled_step_cancels_the_generator_and_ends_the_iteration(
    survive: bool, force_new_loop: bool
) -> None:
    body = Waiting()
    ends: list[object] = []

    def use() -> None:
        items = iterate_on_loop(body.numbers(survive), force_new_loop=force_new_loop)
        next(items)
        try:
            next(items)
        finally:
            ends.append(next(items, "end"))

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(use)())
        await until(body.waiting)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    on_loop(main)
    assert body.seen == ["cancelled", "closed"]
    assert ends == ["end"]


def test_cancelled_step_whose_generator_raises_has_that_as_the_cause() -> None:
    body, error = Waiting(), LookupError()

    def use() -> None:
        items = iterate_on_loop(body.numbers(error=error))
        next(items)
        with pytest.raises(asyncio.CancelledError) as raised:
            next(items)
        assert raised.value.__cause__ is error

    async def main() -> None:
        task = asyncio.create_task(sync_to_async(use)())
        await until(body.waiting)
        task.cancel()
        await asyncio.wait([task])

    on_loop(main)


def test_interrupted_step_ends_the_iteration_and_raises_the_interruption() -> None:
    child = run_child(
        """
        import asyncio, os, signal, sys
        from django_asyncbridge import async_to_sync

        @async_to_sync
        async def numbers():
            try:
                yield 1
                asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGINT)
                await asyncio.Event().wait()
            finally:
                sys.stdout.write("closed\\n")

        items = numbers()
        next(items)
        try:
            next(items)
        except KeyboardInterrupt:
            sys.stdout.write(f"interrupted {next(items, 'end')}\\n")
        """
    )
    assert sorted(child.stdout.split()) == ["closed", "end", "interrupted"]
    assert child.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_loop_iterator_in_a_forked_child_raises() -> None:
    child = run_child(
        """
        import os, warnings
        from django_asyncbridge import async_to_sync

        warnings.simplefilter("ignore", DeprecationWarning)

        @async_to_sync
        async def numbers():
            while True:
                yield 1

        items = numbers()
        next(items)
        if os.fork() == 0:
            try:
                next(items)
            except RuntimeError as error:
                assert "cannot go on in" in str(error)
                print("refused", flush=True)
            del items
            os._exit(0)
        os.wait()
        print(next(items))
        """
    )
    assert child.stdout.split() == ["refused", "1"]


# --- On a loop: throwing into a generator ------------------------------------------------------


def test_wrapped_async_generator_function_is_good_for_a_context_manager() -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    @async_to_sync
    async def manager(swallow: bool) -> AsyncIterator[str]:
        try:
            yield "value"
        except LookupError:
            seen.append("error")
            if not swallow:
                raise
        finally:
            seen.append("exit")

    def check() -> None:
        seen.clear()
        with manager(True) as value:
            assert value == "value"
            fail()
        with pytest.raises(LookupError), manager(False):
            fail()
        with manager(False):
            pass
        assert seen == ["error", "exit"] * 2 + ["exit"]

    everywhere(check)


@pytest.mark.parametrize(
    "arguments",
    [(LookupError("x"),), (LookupError,), (LookupError, LookupError("x")), (LookupError, "x")],
)
def test_iterators_throw_takes_the_older_forms_too(arguments: Any) -> None:
    with pytest.raises(LookupError):
        iterate_on_loop(acount()).throw(*arguments)

    async def main() -> None:
        with pytest.raises(LookupError):
            await iterate_in_thread([1]).athrow(*arguments)

    on_loop(main)


def test_loop_iterator_throw_gives_the_next_item_or_is_the_end() -> None:
    async def body() -> AsyncIterator[object]:
        try:
            yield 1
        except LookupError as error:
            yield error

    def check() -> None:
        error = LookupError()
        items = iterate_on_loop(body())
        next(items)
        assert items.throw(error) is error
        assert list(items) == []
        for iterable, begun in ((AsyncClosable(), True), (acount(), False)):
            other: LoopIterator[int] = iterate_on_loop(iterable)
            if begun:
                next(other)
            with pytest.raises(LookupError) as raised:
                other.throw(error)
            assert raised.value is error
            assert list(other) == []

    everywhere(check)


def test_loop_iterator_errors_keep_nothing_alive() -> None:
    async def failing() -> AsyncIterator[int]:
        yield 1
        raise UnusualError

    def check() -> None:
        for throw in (False, True):
            items = iterate_on_loop(failing())
            next(items)
            with contextlib.suppress(LookupError):
                items.throw(UnusualError()) if throw else next(items)

    with without_gc():
        everywhere(check)
        assert UnusualError.alive() == 0


# --- What the wrappers make of generator functions -----------------------------------------------


class Things:
    """The ways to have a generator function in a class."""

    name = "things"

    def plain(self, end: int) -> Iterator[tuple[str, int]]:
        """Count."""
        for number in range(end):
            yield self.name, number

    @sync_to_async
    def method(self, end: int) -> Iterator[tuple[str, int]]:
        """Count."""
        yield from self.plain(end)

    @staticmethod
    @sync_to_async
    def static(end: int) -> Iterator[tuple[str, int]]:
        yield from Things().plain(end)

    @sync_to_async
    @staticmethod
    def static_inside(end: int) -> Iterator[tuple[str, int]]:
        yield from Things().plain(end)

    @classmethod
    @sync_to_async
    def of_class(cls, end: int) -> Iterator[tuple[str, int]]:
        yield from cls().plain(end)

    def __call__(self, end: int) -> Iterator[tuple[str, int]]:
        yield from self.plain(end)

    @async_to_sync
    async def amethod(self, end: int) -> AsyncIterator[tuple[str, int]]:
        """Count."""
        for item in self.plain(end):
            yield item


def test_wrapped_generator_functions_are_methods_as_what_they_wrap() -> None:
    things, expected = Things(), [("things", 0), ("things", 1)]
    functions: list[Any] = [
        functools.partial(things.method, 2),
        lambda: Things.method(things, 2),
        functools.partial(things.static, 2),
        functools.partial(things.static_inside, 2),
        functools.partial(Things.of_class, 2),
        functools.partial(sync_to_async(things), 2),
        functools.partial(sync_to_async(things.plain), end=2),
        sync_to_async(functools.partial(things.plain, 2)),
    ]

    async def main() -> None:
        for function in functions:
            items = function()
            assert isinstance(items, ThreadIterator)
            assert [item async for item in items] == expected

    on_loop(main)
    assert list(things.amethod(2)) == list(Things.amethod(things, 2)) == expected


@pytest.mark.parametrize("name", ["method", "amethod"])
def test_wrapped_generator_functions_look_like_what_they_wrap(name: str) -> None:
    function = getattr(Things, name)
    assert function.__name__ == name
    assert function.__qualname__ == f"Things.{name}"
    assert function.__doc__ == "Count."
    assert function.func is function.__wrapped__
    assert list(inspect.signature(function).parameters) == ["self", "end"]
    bound = getattr(Things(), name)
    assert bound.__name__ == name
    assert list(inspect.signature(bound).parameters) == ["end"]
    assert not iscoroutinefunction(function)
    assert inspect.isasyncgenfunction(function) == inspect.isasyncgenfunction(bound)
    assert inspect.isasyncgenfunction(function) == (name == "method")


def test_wrapper_of_a_method_shows_whose_it_is() -> None:
    things = Things()
    assert sync_to_async(things.plain).__self__ is things  # type: ignore[attr-defined]  # a method's
    assert not hasattr(sync_to_async(generate), "__self__")


def test_class_whose_objects_make_generators_is_itself_an_ordinary_function() -> None:
    async def main() -> None:
        assert isinstance(await sync_to_async(Things)(), Things)

    on_loop(main)
