"""What the wrappers take over from what they wrap, and what they refuse."""

import functools
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from django_asyncbridge.bridge._wrapping import (
    bind,
    describe,
    is_async,
    is_async_generator_function,
    is_generator_function,
    iscoroutinefunction,
    look_like,
    markcoroutinefunction,
    refuse_generator_function,
)


def sync_function() -> None:
    """Do nothing."""


async def async_function() -> None:
    """Do nothing."""


# What is refused never runs.


def generator_function() -> Iterator[int]:
    yield 1  # pragma: no cover


async def async_generator_function() -> AsyncIterator[int]:
    yield 1  # pragma: no cover


class SyncObject:
    def __call__(self) -> None:
        """Do nothing."""


class AsyncObject:
    async def __call__(self) -> None:
        """Do nothing."""

    async def method(self) -> None:
        """Do nothing."""


class GeneratorObject:
    def __call__(self) -> Iterator[int]:
        yield 1  # pragma: no cover

    def method(self) -> Iterator[int]:
        yield 1  # pragma: no cover


class AsyncGeneratorObject:
    async def __call__(self) -> AsyncIterator[int]:
        yield 1  # pragma: no cover


# --- Coroutine functions and their mark ------------------------------------------


def test_markcoroutinefunction_returns_the_function_and_iscoroutinefunction_says_yes() -> None:
    def function() -> Awaitable[None]:
        raise AssertionError

    assert not iscoroutinefunction(function)
    assert markcoroutinefunction(function) is function
    assert iscoroutinefunction(function)


def test_markcoroutinefunction_is_the_interpreters_own_where_it_has_one() -> None:
    interpreters = getattr(inspect, "markcoroutinefunction", None)
    assert interpreters in (None, markcoroutinefunction)
    assert (interpreters is None) == (sys.version_info < (3, 12))


def named(**functions: object) -> pytest.MarkDecorator:
    """Run a test with each of these functions."""
    return pytest.mark.parametrize("function", functions.values(), ids=functions.keys())


@named(
    function=async_function,
    callable_object=AsyncObject(),
    method=AsyncObject().method,
    partial=functools.partial(async_function),
)
def test_is_async_of_what_returns_a_coroutine_is_true(function: object) -> None:
    assert is_async(function)


@named(
    function=sync_function,
    callable_object=SyncObject(),
    a_class=SyncObject,
    partial=functools.partial(sync_function),
    no_function=5,
)
def test_is_async_of_anything_else_is_false(function: object) -> None:
    assert not is_async(function)


# --- Generator functions ---------------------------------------------------------


GENERATOR_FUNCTIONS = named(
    function=generator_function,
    callable_object=GeneratorObject(),
    method=GeneratorObject().method,
    partial=functools.partial(functools.partial(generator_function)),
    partial_of_an_object=functools.partial(GeneratorObject()),
    static_method=staticmethod(generator_function),
)
ASYNC_GENERATOR_FUNCTIONS = named(
    function=async_generator_function,
    callable_object=AsyncGeneratorObject(),
    partial=functools.partial(async_generator_function),
    partial_of_an_object=functools.partial(AsyncGeneratorObject()),
    static_method=staticmethod(async_generator_function),
)


@GENERATOR_FUNCTIONS
def test_refuse_generator_function_names_it_and_says_what_to_do(function: object) -> None:
    assert is_generator_function(function)
    assert not is_async_generator_function(function)
    with pytest.raises(TypeError, match=r"the generator function tests\.b.*sync_to_async\(tests"):
        refuse_generator_function(function, "sync_to_async")
    with pytest.raises(TypeError, match=r"^async_to_sync cannot wrap the generator .*with 'for'"):
        refuse_generator_function(function, "async_to_sync")


@ASYNC_GENERATOR_FUNCTIONS
def test_refuse_generator_function_of_an_async_one_says_what_to_do(function: object) -> None:
    assert is_async_generator_function(function)
    assert not is_generator_function(function)
    with pytest.raises(TypeError, match=r"async generator function tests\.b.*async_to_sync\(tests"):
        refuse_generator_function(function, "async_to_sync")
    with pytest.raises(TypeError, match=r"^sync_to_async cannot wrap the async .*'async for'"):
        refuse_generator_function(function, "sync_to_async")


@named(
    function=sync_function,
    async_function=async_function,
    callable_object=SyncObject(),
    async_callable_object=AsyncObject(),
    class_of_generator_objects=GeneratorObject,
    no_function=5,
)
def test_refuse_generator_function_lets_everything_else_pass(function: object) -> None:
    refuse_generator_function(function, "sync_to_async")
    refuse_generator_function(function, "async_to_sync")


# --- Names -----------------------------------------------------------------------


class Nameless:
    """A callable object with neither name nor module of its own."""

    __module__ = None  # type: ignore[assignment]  # what the test is about

    def __call__(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (sync_function, "tests.bridge.test_wrapping.sync_function"),
        (AsyncObject().method, "tests.bridge.test_wrapping.AsyncObject.method"),
        (SyncObject(), "tests.bridge.test_wrapping.SyncObject"),
        (functools.partial(sync_function), "tests.bridge.test_wrapping.sync_function"),
        (Nameless(), "Nameless"),
        (len, "builtins.len"),
    ],
    ids=["function", "method", "object", "partial", "nameless", "builtin"],
)
def test_describe_names_the_function_for_a_message(function: object, name: str) -> None:
    assert describe(function) == name


def test_look_like_takes_over_everything_but_the_mark_of_coroutine_functions() -> None:
    class Wrapper:
        def __call__(self) -> None:
            """Do nothing."""

    @markcoroutinefunction
    def function(first: int = 1) -> Awaitable[None]:
        """Say what it does."""
        raise AssertionError

    function.attribute = "kept"  # type: ignore[attr-defined]  # functions may have any
    wrapper: Any = Wrapper()
    look_like(wrapper, function)
    assert wrapper.__name__ == "function"
    assert wrapper.__doc__ == "Say what it does."
    assert wrapper.__wrapped__ is function
    assert wrapper.attribute == "kept"
    assert list(inspect.signature(wrapper).parameters) == ["first"]
    assert iscoroutinefunction(function)
    assert not iscoroutinefunction(wrapper)


def test_look_like_leaves_a_mark_that_the_wrapper_had_before() -> None:
    def wrapper() -> Awaitable[None]:
        raise AssertionError

    look_like(markcoroutinefunction(wrapper), async_function)
    assert iscoroutinefunction(wrapper)


# --- Binding ---------------------------------------------------------------------


def called_with(*args: object) -> tuple[object, ...]:
    return args


def method(self: object, number: int) -> None:
    """Do nothing."""


def bound(wrapped: Callable[..., Any], instance: object) -> Any:
    return bind(called_with, wrapped, instance)


def test_bind_of_a_function_passes_the_instance_and_hides_its_parameter() -> None:
    instance = SyncObject()
    result = bound(method, instance)
    assert result(1) == (instance, 1)
    assert result.__name__ == "method"
    assert list(inspect.signature(result).parameters) == ["number"]


def test_bind_of_a_static_method_passes_nothing() -> None:
    result = bound(staticmethod(method), SyncObject())
    assert result(1) == (1,)
    assert result.__name__ == "method"
    assert list(inspect.signature(result).parameters) == ["self", "number"]


def test_bind_of_a_partial_or_a_callable_object_passes_the_instance() -> None:
    """They are no functions, but a wrapper of them is a method of the class that it stands in."""
    instance = SyncObject()
    for wrapped in (functools.partial(method), SyncObject()):
        assert bound(wrapped, instance)(1) == (instance, 1)
