"""Section F: what can be wrapped, and what a wrapper looks like."""

import asyncio
import functools
import inspect
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from django_asyncbridge.bridge.sync import (
    AsyncToSync,
    SyncToAsync,
    async_to_sync,
    iscoroutinefunction,
    markcoroutinefunction,
    sync_to_async,
)
from tests.field_failures.common import on_plain_loop
from tests.support import run_in_thread

# --- C60: generator functions ------------------------------------------------------------------


def generate() -> Iterator[int]:
    yield 1


async def agenerate() -> AsyncIterator[int]:
    yield 1


class Generates:
    """Makes generators in each way a callable can."""

    def __call__(self) -> Iterator[int]:
        yield 1

    def method(self) -> Iterator[int]:
        yield 1

    async def amethod(self) -> AsyncIterator[int]:
        yield 1

    @staticmethod
    def static() -> Iterator[int]:
        yield 1


class AsyncGenerates:
    """Makes async generators when called."""

    async def __call__(self) -> AsyncIterator[int]:
        yield 1


GENERATOR_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "function": generate,
    "partial": functools.partial(generate),
    "method": Generates().method,
    "static method": Generates.static,
    "callable object": Generates(),
}
ASYNC_GENERATOR_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "function": agenerate,
    "partial": functools.partial(agenerate),
    "method": Generates().amethod,
    "callable object": AsyncGenerates(),
}


def check_refusal(wrap: Callable[[Callable[..., Any]], object], function: Any, hint: str) -> None:
    """Expect a TypeError at wrapping time that names the cause and goes on to say what to do."""
    # The bodies of the examples are there to be refused, and work where nothing is wrapped.
    assert inspect.isgenerator(function()) or inspect.isasyncgen(function())
    with pytest.raises(TypeError, match=f"generator.*{hint}") as raised:
        wrap(function)
    assert len(str(raised.value).split()) > 10


@pytest.mark.parametrize("function", GENERATOR_FUNCTIONS.values(), ids=GENERATOR_FUNCTIONS.keys())
def test_c60_generator_function_runs_in_its_thread_or_is_refused(
    function: Callable[..., Any],
) -> None:
    """C60: never on the event loop's thread. The function `sync_to_async` makes an async iterator of it."""
    check_refusal(SyncToAsync, function, "use the function")
    check_refusal(async_to_sync, function, "iterate over it with 'for'")

    async def main() -> None:
        for wrapped in (sync_to_async(function), sync_to_async(thread_sensitive=False)(function)):
            assert [item async for item in wrapped()] == [1]

    on_plain_loop(main)


@pytest.mark.parametrize(
    "function", ASYNC_GENERATOR_FUNCTIONS.values(), ids=ASYNC_GENERATOR_FUNCTIONS.keys()
)
def test_c60_async_generator_function_is_advanced_on_a_loop_or_refused(
    function: Callable[..., Any],
) -> None:
    """C60: the same the other way round."""
    check_refusal(AsyncToSync, function, "use the function")
    check_refusal(sync_to_async, function, "iterate over it with 'async for'")
    assert list(async_to_sync(function)()) == [1]
    assert list(async_to_sync(force_new_loop=True)(function)()) == [1]


def test_c60_function_that_returns_a_generator_is_accepted() -> None:
    """C60: it is an ordinary call, whose result is the generator."""

    def returns() -> list[Iterator[int]]:
        return [generate()]

    async def main() -> list[Iterator[int]]:
        return await sync_to_async(returns)()

    (generator,) = on_plain_loop(main)
    assert list(generator) == [1]


def test_c60_generators_of_the_examples_work_without_a_wrapper() -> None:
    """C60: what is refused is the wrapping, not the functions."""

    async def numbers(function: Callable[[], AsyncIterator[int]]) -> list[int]:
        return [number async for number in function()]

    for function in GENERATOR_FUNCTIONS.values():
        assert list(function()) == [1]
    for afunction in ASYNC_GENERATOR_FUNCTIONS.values():
        assert asyncio.run(numbers(afunction)) == [1]


# --- C64: names ---------------------------------------------------------------------------------


async def documented(first: int, *, second: str = "") -> tuple[int, str]:
    """Say something."""
    return first, second


documented.extra = "kept"  # type: ignore[attr-defined]  # what decorators leave on functions


def test_c64_async_to_sync_looks_like_what_it_wraps() -> None:
    """C64: decorators, fixtures and introspection find the function's name, text and signature."""
    wrapper: Any = async_to_sync(documented)
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        assert getattr(wrapper, name) == getattr(documented, name)
    assert wrapper.__wrapped__ is documented
    assert wrapper.extra == "kept"
    assert inspect.signature(wrapper) == inspect.signature(documented)
    assert functools.wraps(wrapper)(lambda: None).__name__ == "documented"
    assert run_in_thread(lambda: wrapper(1, second="2")) == (1, "2")


def test_c64_async_to_sync_is_not_taken_for_a_coroutine_function() -> None:
    """C64: it looks like the coroutine function but is called without `await`."""

    @markcoroutinefunction
    def marked() -> Coroutine[Any, Any, tuple[int, str]]:
        return documented(1)

    for wrapper in (async_to_sync(documented), async_to_sync(marked)):
        assert not iscoroutinefunction(wrapper)
        assert not inspect.iscoroutinefunction(wrapper)
        with warnings.catch_warnings():
            # From Python 3.14 on it warns that it will go.
            warnings.simplefilter("ignore", DeprecationWarning)
            assert not asyncio.iscoroutinefunction(wrapper)
    assert iscoroutinefunction(marked)
    assert run_in_thread(async_to_sync(marked)) == (1, "")


def test_c64_sync_to_async_looks_like_what_it_wraps_and_is_a_coroutine_function() -> None:
    """C64: the same for the other wrapper, as today."""

    def function(first: int) -> int:
        """Say something."""
        return first

    wrapper: Any = sync_to_async(function)
    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        assert getattr(wrapper, name) == getattr(function, name)
    assert wrapper.__wrapped__ is function
    assert inspect.signature(wrapper) == inspect.signature(function)
    assert iscoroutinefunction(wrapper)
    assert asyncio.run(wrapper(1)) == 1


def test_c64_chain_of_both_wrappers_works_and_keeps_its_name() -> None:
    """C64: libraries wrap what was wrapped before, in either order."""

    def function(first: int) -> int:
        return first

    to_sync: Any = async_to_sync(sync_to_async(function))
    to_async: Any = sync_to_async(async_to_sync(documented))
    assert (to_sync.__name__, to_async.__name__) == ("function", "documented")
    assert not iscoroutinefunction(to_sync)
    assert iscoroutinefunction(to_async)
    assert run_in_thread(lambda: to_sync(1)) == 1
    assert asyncio.run(to_async(1)) == (1, "")


def test_c64_wrapper_of_a_partial_or_object_without_a_name_works() -> None:
    """C64: what has no name to take over is wrapped all the same."""

    class Callable_:  # noqa: N801
        async def __call__(self, first: int) -> tuple[int, str]:
            return await documented(first)

    assert run_in_thread(lambda: async_to_sync(Callable_())(1)) == (1, "")
    partial = functools.partial(documented, second="2")
    assert run_in_thread(lambda: async_to_sync(partial)(1)) == (1, "2")


# --- C65: methods --------------------------------------------------------------------------------


class View:
    """Has a method of every kind behind each wrapper."""

    def __init__(self, name: str) -> None:
        self.name = name

    @sync_to_async
    def to_async(self, suffix: str) -> tuple[str, int]:
        """Say async."""
        return self.name + suffix, threading.get_ident()

    @async_to_sync
    async def to_sync(self, suffix: str) -> str:
        """Say sync."""
        return self.name + suffix

    @classmethod
    @sync_to_async
    def class_to_async(cls, suffix: str) -> str:
        return cls.__name__ + suffix

    @classmethod
    @async_to_sync
    async def class_to_sync(cls, suffix: str) -> str:
        return cls.__name__ + suffix

    @staticmethod
    @sync_to_async
    def static_to_async(suffix: str) -> str:
        return "static" + suffix

    @staticmethod
    @async_to_sync
    async def static_to_sync(suffix: str) -> str:
        return "static" + suffix


class SubView(View):
    """Inherits all of them."""


def test_c65_method_called_through_the_class_gets_the_instance_it_is_given() -> None:
    """C65: `View.method(view)` is the same call as `view.method()`."""
    view = SubView("view")

    async def main() -> list[str]:
        return [(await View.to_async(view, "!"))[0], (await view.to_async("!"))[0]]

    assert on_plain_loop(main) == ["view!"] * 2
    assert run_in_thread(lambda: [View.to_sync(view, "!"), view.to_sync("!")]) == ["view!"] * 2


def test_c65_method_called_through_super_gets_its_instance() -> None:
    """C65: and so does the call of an overridden method."""

    class Overriding(View):
        def both(self) -> list[Any]:
            return [super().to_sync("!"), async_to_sync(super().to_async)("!")[0]]

    assert run_in_thread(Overriding("view").both) == ["view!", "view!"]


def test_c65_method_has_the_signature_of_what_it_wraps() -> None:
    """C65: through the class with `self`, through an instance without."""
    for name in ("to_async", "to_sync"):
        of_class = inspect.signature(getattr(View, name))
        of_instance = inspect.signature(getattr(View("view"), name))
        assert list(of_class.parameters) == ["self", "suffix"]
        assert list(of_instance.parameters) == ["suffix"]
        assert getattr(View, name).__name__ == getattr(View("view"), name).__name__ == name
        assert getattr(View, name).__doc__ == getattr(View("view"), name).__doc__ is not None


def test_c65_method_through_class_and_instance_is_known_to_be_async_or_not() -> None:
    """C65: frameworks ask before they call."""
    assert iscoroutinefunction(View.to_async)
    assert not iscoroutinefunction(View.to_sync)
    assert not iscoroutinefunction(View("view").to_sync)


def test_c65_class_and_static_methods_work_through_class_and_instance() -> None:
    """C65: the other kinds of method, as today."""

    async def main() -> list[str]:
        return [
            await SubView.class_to_async("!"),
            await SubView("").class_to_async("!"),
            await SubView.static_to_async("!"),
            await SubView("").static_to_async("!"),
        ]

    def caller() -> list[str]:
        return [
            SubView.class_to_sync("!"),
            SubView("").class_to_sync("!"),
            SubView.static_to_sync("!"),
            SubView("").static_to_sync("!"),
        ]

    expected = ["SubView!", "SubView!", "static!", "static!"]
    assert on_plain_loop(main) == expected
    assert run_in_thread(caller) == expected
