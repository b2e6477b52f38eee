"""`AsyncToSync`: on which loop the coroutine runs, what comes back, and what is left behind."""

import asyncio
import contextvars
import functools
import inspect
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, NoReturn

import pytest
import uvloop

from django_asyncbridge.bridge import _mirror, _state
from django_asyncbridge.bridge.sync import (
    AsyncToSync,
    async_to_sync,
    markcoroutinefunction,
    sync_to_async,
)
from tests.bridge import wait

variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


async def where() -> tuple[asyncio.AbstractEventLoop, int]:
    return asyncio.get_running_loop(), threading.get_ident()


# --- Making one ------------------------------------------------------------------


async def async_function(first: int, second: int = 0) -> int:
    """Add them up."""
    return first + second


class CallableObject:
    """A callable object."""

    async def __call__(self, first: int) -> int:
        return first


class Methods:
    """Each kind of method, wrapped."""

    @async_to_sync
    async def plain(self, first: int) -> tuple[object, int]:
        """Return what it is given."""
        return self, first

    @classmethod
    @async_to_sync
    async def of_class(cls, first: int) -> tuple[object, int]:
        return cls, first

    @staticmethod
    @async_to_sync
    async def static(first: int) -> int:
        return first

    async def unwrapped(self, first: int) -> tuple[object, int]:
        return self, first


@pytest.mark.parametrize(
    "function",
    [async_function, functools.partial(async_function, second=0), CallableObject()],
    ids=["function", "partial", "object"],
)
def test_async_to_sync_runs_functions_partials_and_objects(
    function: Callable[[int], Coroutine[Any, Any, int]],
) -> None:
    assert async_to_sync(function)(1) == 1


def test_async_to_sync_decorates_with_and_without_arguments() -> None:
    @async_to_sync
    async def bare() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    @async_to_sync(force_new_loop=True)
    async def with_arguments() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def main() -> list[bool]:
        loop = asyncio.get_running_loop()
        return [await sync_to_async(function)() is loop for function in (bare, with_arguments)]

    assert asyncio.run(main()) == [True, False]


def test_async_to_sync_binds_as_what_it_wraps() -> None:
    instance = Methods()
    assert instance.plain(1) == Methods.plain(instance, 1) == (instance, 1)
    assert instance.of_class(1) == Methods.of_class(1) == (Methods, 1)
    assert instance.static(1) == Methods.static(1) == 1
    assert instance.plain.__name__ == "plain"
    assert list(inspect.signature(instance.plain).parameters) == ["first"]


def test_async_to_sync_of_a_bound_method_knows_its_instance() -> None:
    instance = Methods()
    wrapper: Any = async_to_sync(instance.unwrapped)
    assert wrapper.__self__ is instance
    assert wrapper.awaitable == instance.unwrapped
    assert wrapper.force_new_loop is False
    assert wrapper(1) == (instance, 1)


def test_async_to_sync_warns_of_a_function_that_is_not_marked_as_async_and_takes_it() -> None:
    def returns_awaitable() -> Awaitable[int]:
        return async_function(1)

    wrappers: list[Callable[..., Callable[[], int]]] = [
        AsyncToSync,
        async_to_sync,
        async_to_sync(force_new_loop=True),
    ]
    for wrap in wrappers:
        with pytest.warns(UserWarning, match="non-async-marked callable") as caught:
            wrapper = wrap(returns_awaitable)
        assert caught[0].filename == __file__
        assert wrapper() == 1
    assert async_to_sync(markcoroutinefunction(returns_awaitable))() == 1


def test_async_to_sync_refuses_generator_functions() -> None:
    def generator() -> Iterator[int]:
        yield 1  # pragma: no cover  # is refused, so it never runs

    with pytest.raises(TypeError, match="async_to_sync cannot wrap the generator function"):
        async_to_sync(generator)  # type: ignore[arg-type]  # what is tested


# --- On which loop ---------------------------------------------------------------


def test_call_in_a_function_of_async_code_runs_on_the_loop_that_waits_for_it() -> None:
    async def main() -> None:
        here = await where()
        assert await sync_to_async(async_to_sync(where))() == here
        in_pool = sync_to_async(async_to_sync(where), thread_sensitive=False)
        assert await in_pool() == here

    asyncio.run(main())


def test_call_in_a_thread_that_no_loop_waits_for_runs_there_on_its_own_loop() -> None:
    loop, ident = async_to_sync(where)()
    assert not loop.is_closed()
    assert ident == threading.get_ident()
    assert async_to_sync(where)() == (loop, ident)


def test_call_with_force_new_loop_runs_on_a_loop_that_is_closed_at_the_end() -> None:
    kept = async_to_sync(where)()[0]
    loops = [async_to_sync(where, force_new_loop=True)()[0] for _ in range(2)]
    assert kept not in loops
    assert loops[0] is not loops[1]
    assert [loop.is_closed() for loop in (*loops, kept)] == [True, True, False]


def test_call_with_a_loop_factory_runs_on_a_loop_made_by_it() -> None:
    on_uvloop = AsyncToSync(where, loop_factory=uvloop.new_event_loop)
    loop, ident = on_uvloop()
    assert type(loop) is uvloop.Loop
    assert ident == threading.get_ident()
    assert on_uvloop()[0] is loop
    assert async_to_sync(where)()[0] is not loop
    forced = AsyncToSync(where, True, loop_factory=uvloop.new_event_loop)()[0]
    assert type(forced) is uvloop.Loop
    assert forced is not loop
    assert forced.is_closed()


def test_call_with_a_loop_factory_below_a_loop_runs_on_that_one() -> None:
    async def main() -> None:
        function = AsyncToSync(where, loop_factory=uvloop.new_event_loop)
        assert await sync_to_async(function)() == await where()

    asyncio.run(main())


# --- With a limit ----------------------------------------------------------------


@pytest.mark.parametrize("seconds", [None, 0, 60])
def test_call_that_ends_in_time_returns_what_its_coroutine_does(seconds: float | None) -> None:
    async def at_once() -> str:
        return "result"

    assert AsyncToSync(at_once, timeout=seconds)() == "result"


def test_call_that_takes_too_long_is_cancelled_and_raises_when_it_has_cleaned_up() -> None:
    log: list[object] = []

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append(await sync_to_async(threading.get_ident)())

    with pytest.raises(TimeoutError, match=r"wait_for_ever did not end within 0\.01 s") as caught:
        AsyncToSync(wait_for_ever, timeout=0.01)()
    assert log == [threading.get_ident()]
    assert type(caught.value.__cause__) is TimeoutError


@pytest.mark.parametrize("handled", [False, True])
def test_call_with_a_limit_raises_a_timeout_error_of_the_coroutine_as_it_is(handled: bool) -> None:
    error = TimeoutError("the peer's")

    async def fail() -> NoReturn:
        raise error

    def call() -> None:
        with pytest.raises(TimeoutError) as caught:
            AsyncToSync(fail, timeout=60)()
        assert caught.value is error

    try:
        if handled:
            raise LookupError
    except LookupError:
        call()
    else:
        call()


def test_call_with_a_negative_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not be negative.*-1"):
        AsyncToSync(where, timeout=-1)


def test_call_in_a_thread_that_runs_a_loop_raises_and_calls_nothing() -> None:
    @markcoroutinefunction
    def must_not_run() -> Coroutine[Any, Any, None]:
        raise AssertionError("it ran")

    async def main() -> None:
        with pytest.raises(RuntimeError, match=r"just await .*must_not_run directly"):
            async_to_sync(must_not_run)()

    asyncio.run(main())


def test_call_on_a_loop_that_was_closed_runs_on_a_loop_of_its_own() -> None:
    closed = asyncio.new_event_loop()
    closed.close()

    def function() -> asyncio.AbstractEventLoop:
        _state.threadlocal.main_event_loop = closed
        return async_to_sync(where)()[0]

    async def main() -> tuple[asyncio.AbstractEventLoop, asyncio.AbstractEventLoop]:
        return await sync_to_async(function)(), asyncio.get_running_loop()

    used, running = asyncio.run(main())
    assert used not in (closed, running)


# --- What comes back -------------------------------------------------------------


def test_call_says_on_both_sides_when_values_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    async def change() -> None:
        assert seen == ["before"]
        variable.set("after")

    def body() -> None:
        variable.set("before")
        async_to_sync(change)()

    seen: list[object] = []
    monkeypatch.setattr(_mirror, "_arrival_hook", lambda: seen.append(variable.get()))
    contextvars.Context().run(body)
    assert seen == ["before", "after"]


def test_call_raises_what_the_coroutine_raised_and_keeps_what_it_set() -> None:
    async def fail() -> NoReturn:
        variable.set("set before it failed")
        raise ValueError("x")

    def body() -> None:
        with pytest.raises(ValueError, match="x"):
            async_to_sync(fail)()
        assert variable.get() == "set before it failed"
        assert _state.current_executor.get() is None

    contextvars.Context().run(body)


@pytest.mark.parametrize("function_fails", [True, False])
def test_call_whose_function_makes_nothing_to_await_raises_and_puts_everything_back(
    function_fails: bool,
) -> None:
    @markcoroutinefunction
    def function() -> Any:
        if function_fails:
            raise ValueError("no coroutine")
        return 5

    with pytest.raises(ValueError if function_fails else TypeError):
        async_to_sync(function)()
    assert _state.current_executor.get() is None


def test_call_awaits_what_is_no_coroutine() -> None:
    class Awaited:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "result"

    assert async_to_sync(markcoroutinefunction(Awaited))() == "result"


def test_call_while_an_exception_is_handled_shows_it_and_does_not_change_it() -> None:
    async def current() -> object:
        return sys.exc_info()[1]

    def call() -> list[object]:
        try:
            raise KeyError("handled")
        except KeyError as error:
            before = error, error.__traceback__, error.__context__
            return [before, (async_to_sync(current)(), error.__traceback__, error.__context__)]

    before, after = call()
    assert before == after
    assert async_to_sync(current)() is None


def test_call_while_an_exception_is_handled_does_not_chain_it_to_one_around_the_loop() -> None:
    """P2: the event loop may have been started inside an except block."""
    error = KeyError("the caller's")
    wrapper: Any = async_to_sync(async_function)

    async def main() -> None:
        exc_info = (KeyError, error, None)
        context = [contextvars.copy_context()]
        await wrapper.main_wrap(Future(), exc_info, None, context, async_function(1))

    try:
        raise ValueError("the loop's")
    except ValueError:
        asyncio.run(main())
    assert error.__context__ is None


class FrozenError(Exception):
    """As a frozen dataclass makes it."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AssertionError(f"assigned to {name!r}")


def test_call_while_an_exception_is_handled_that_cannot_be_changed_works() -> None:
    try:
        raise FrozenError
    except FrozenError:
        assert async_to_sync(async_function)(1) == 1


# --- Who is in the list of tasks -------------------------------------------------


def test_call_is_in_the_list_of_tasks_of_the_function_around_it_while_it_runs() -> None:
    seen: list[list[object]] = []
    children: list[object] = []

    async def inner() -> asyncio.Task[Any] | None:
        seen.append(list(children))
        return asyncio.current_task()

    def function() -> None:
        nonlocal children
        children = _state.threadlocal.task_context
        assert async_to_sync(inner)() is seen[0][0]
        assert children == []

    asyncio.run(sync_to_async(function)())
    assert len(seen[0]) == 1


def test_call_inside_an_eager_task_runs_and_is_cancelled_as_any_other() -> None:
    """Python 3.12 and later may run the first step of the coroutine before its task is known."""
    factory = getattr(asyncio, "eager_task_factory", None)

    async def inner() -> NoReturn:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        assert await sync_to_async(lambda: async_to_sync(async_function)(1))() == 1
        task = asyncio.create_task(sync_to_async(async_to_sync(inner))())
        await asyncio.to_thread(wait, began)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began = threading.Event()
    asyncio.run(main())


# --- Who gives up ----------------------------------------------------------------


def test_coroutine_that_ends_after_its_caller_gave_up_tells_nobody() -> None:
    """The caller was interrupted twice, or its loop had stopped."""
    result: Future[int] = Future()
    result.cancel()
    wrapper: Any = async_to_sync(async_function)

    async def main() -> None:
        context = [contextvars.copy_context()]
        await wrapper.main_wrap(result, (None, None, None), None, context, async_function(1))

    asyncio.run(main())
    assert result.cancelled()
