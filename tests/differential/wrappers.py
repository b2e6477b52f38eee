"""Scenarios of what a wrapper looks like, and of the ways to make and to hold one."""

import asyncio
import functools
import inspect
import warnings
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

from tests.differential.library import Library, Table, async_error_of, error_of

__all__ = ("WRAPPERS",)

WRAPPERS = Table("wrappers")


def function(one: int, *, two: int = 2) -> list[int]:
    """Add nothing."""
    return [one, two]


async def coroutine_function(one: int, *, two: int = 2) -> list[int]:
    """Await nothing."""
    return [one, two]


function.__dict__["mark"] = coroutine_function.__dict__["mark"] = "marked"


class Callables:
    """Instances can be called."""

    def __call__(self, one: int) -> list[int]:
        return [one]


class AsyncCallables:
    """Instances can be called and awaited."""

    async def __call__(self, one: int) -> list[int]:
        return [one]


def looks(wrapper: Any, wrapped: Any) -> list[object]:
    """Return what introspection finds in a wrapper."""
    names = ("__name__", "__qualname__", "__module__", "__doc__", "mark")
    same = [getattr(wrapper, name, None) == getattr(wrapped, name, None) for name in names]
    return [same, getattr(wrapper, "__wrapped__", None) is wrapped]


def signature(wrapper: Any) -> str:
    """Return a wrapper's signature."""
    return str(inspect.signature(wrapper))


@WRAPPERS.add
def sync_to_async_looks_like_its_function(library: Library) -> object:
    return looks(library.sync_to_async(function), function)


@WRAPPERS.add
def async_to_sync_looks_like_its_function(library: Library) -> object:
    return looks(library.async_to_sync(coroutine_function), coroutine_function)


@WRAPPERS.add
def sync_to_async_has_the_signature_of_its_function(library: Library) -> object:
    return signature(library.sync_to_async(function))


@WRAPPERS.add
def async_to_sync_has_the_signature_of_its_function(library: Library) -> object:
    return signature(library.async_to_sync(coroutine_function))


@WRAPPERS.add
def wrappers_show_their_parts(library: Library) -> object:
    there: Any = library.sync_to_async(function)
    back: Any = library.async_to_sync(coroutine_function, force_new_loop=True)
    return [
        there.func is function,
        isinstance(there, library.SyncToAsync),
        back.awaitable is coroutine_function,
        back.force_new_loop,
        isinstance(back, library.AsyncToSync),
    ]


@WRAPPERS.add
def coroutine_functions_are_told_from_others(library: Library) -> object:
    class Methods:
        wrapped = library.sync_to_async(function)
        unwrapped = library.async_to_sync(coroutine_function)

    things: list[object] = [
        function,
        coroutine_function,
        library.sync_to_async(function),
        library.async_to_sync(coroutine_function),
        library.async_to_sync(library.sync_to_async(function)),
        library.async_to_sync(library.markcoroutinefunction(functools.partial(function))),
        library.sync_to_async(Callables()),
        Methods().wrapped,
        Methods().unwrapped,
        library.markcoroutinefunction(functools.partial(function)),
        functools.partial(coroutine_function),
        AsyncCallables(),
        1,
    ]
    tell = [library.iscoroutinefunction, inspect.iscoroutinefunction]
    return [[bool(is_one(thing)) for thing in things] for is_one in tell]


@WRAPPERS.add
def mark_returns_its_function(library: Library) -> object:
    partial = functools.partial(function)
    return [
        library.markcoroutinefunction(partial) is partial,
        bool(library.iscoroutinefunction(partial)),
    ]


@WRAPPERS.add
def marked_function_is_taken_for_async(library: Library) -> object:
    def returns_coroutine(one: int) -> Awaitable[list[int]]:
        return coroutine_function(one)

    marked = library.markcoroutinefunction(returns_coroutine)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [library.async_to_sync(marked)(1), error_of(library.sync_to_async, marked)]


@WRAPPERS.add
def decorators_with_and_without_arguments(library: Library) -> object:
    @library.sync_to_async
    def plain(one: int) -> int:
        return one

    @library.sync_to_async(thread_sensitive=False)
    def free(one: int) -> int:
        return one

    @library.async_to_sync
    async def back(one: int) -> list[int]:
        return [await plain(one), await free(one)]

    @library.async_to_sync(force_new_loop=True)
    async def back_alone(one: int) -> list[int]:
        return [await plain(one), await free(one)]

    return [back(1), back_alone(2), [wrapper.__name__ for wrapper in (plain, free)]]


@WRAPPERS.add
def callables_and_partials(library: Library) -> object:
    async def main() -> list[object]:
        wrapped = [functools.partial(function, 1), Callables(), Callables().__call__]
        return [
            await library.sync_to_async(thing)(*args)
            for thing, args in zip(wrapped, [(), (2,), (3,)], strict=True)
        ]

    return [
        asyncio.run(main()),
        library.async_to_sync(functools.partial(coroutine_function, 1))(two=3),
        library.async_to_sync(AsyncCallables())(2),
        library.async_to_sync(AsyncCallables().__call__)(3),
    ]


@WRAPPERS.add
def wrapper_of_a_wrapper(library: Library) -> object:
    there = library.sync_to_async(function)
    back = library.async_to_sync(there)
    return [back(1), asyncio.run(library.sync_to_async(back)(2)), library.async_to_sync(there)(3)]


@WRAPPERS.add
def mocks_are_taken_for_functions(library: Library) -> object:
    plain = mock.Mock(return_value=1)
    returning: Any = mock.AsyncMock(return_value=2)
    results = [asyncio.run(library.sync_to_async(plain)(3)), library.async_to_sync(returning)(4)]
    return [results, plain.call_args.args, returning.await_args.args]


# --- Methods -------------------------------------------------------------------


def make_class(library: Library) -> Any:
    """Return a class with every kind of wrapped method."""

    class Methods:
        name = "base"

        @library.sync_to_async
        def there(self, one: int) -> list[object]:
            """Go there."""
            return [self.name, one]

        @library.sync_to_async(thread_sensitive=False)
        def there_free(self, one: int) -> list[object]:
            return [self.name, one]

        @classmethod
        @library.sync_to_async
        def there_of_class(cls, one: int) -> list[object]:
            return [cls.__name__, one]

        @staticmethod
        @library.sync_to_async
        def there_static(one: int) -> list[object]:
            return [one]

        @library.async_to_sync
        async def back(self, one: int) -> list[object]:
            """Come back."""
            return [self.name, one]

        @classmethod
        @library.async_to_sync
        async def back_of_class(cls, one: int) -> list[object]:
            return [cls.__name__, one]

        @staticmethod
        @library.async_to_sync
        async def back_static(one: int) -> list[object]:
            return [one]

        def plain(self, one: int) -> list[object]:
            return [self.name, one]

        async def plain_async(self, one: int) -> list[object]:
            return [self.name, one]

    return Methods


@WRAPPERS.add
def methods_of_instances(library: Library) -> object:
    thing = make_class(library)()
    there = [thing.there, thing.there_free, thing.there_of_class, thing.there_static]
    there.append(library.sync_to_async(thing.plain))

    async def main() -> list[object]:
        return [await method(1) for method in there]

    back = [
        thing.back,
        thing.back_of_class,
        thing.back_static,
        library.async_to_sync(thing.plain_async),
    ]
    return [asyncio.run(main()), [method(1) for method in back]]


@WRAPPERS.add
def class_methods_and_static_methods_of_the_class(library: Library) -> object:
    cls = make_class(library)

    async def main() -> list[object]:
        return [await cls.there_of_class(1), await cls.there_static(1)]

    return [asyncio.run(main()), cls.back_of_class(1), cls.back_static(1)]


@WRAPPERS.add
def sync_to_async_method_through_the_class(library: Library) -> object:
    cls = make_class(library)
    return asyncio.run(async_error_of(cls.there(cls(), 1)))


@WRAPPERS.add
def async_to_sync_method_through_the_class(library: Library) -> object:
    cls = make_class(library)
    return error_of(cls.back, cls(), 1)


@WRAPPERS.add
def methods_of_a_subclass_call_those_of_the_base(library: Library) -> object:
    base: Any = make_class(library)

    class Derived(base):  # type: ignore[misc]  # the base is made at run time
        name = "derived"

        async def there(self, one: int) -> list[object]:
            return ["more", *await super().there(one)]

        def back(self, one: int) -> list[object]:
            return ["more", *super().back(one)]

    return [asyncio.run(Derived().there(1)), Derived().back(2)]


@WRAPPERS.add
def bound_methods_look_like_their_functions(library: Library) -> object:
    thing = make_class(library)()
    there, back = thing.there, thing.back
    return [
        [
            method.__name__,
            method.__doc__,
            method.__qualname__.endswith(f"Methods.{method.__name__}"),
        ]
        for method in (there, back)
    ]


@WRAPPERS.add
def wrapped_bound_methods_know_their_instance(library: Library) -> object:
    thing = make_class(library)()
    wrapped: list[Callable[..., Any]] = [
        library.sync_to_async(thing.plain),
        library.async_to_sync(thing.plain_async),
        library.sync_to_async(function),
    ]
    return [getattr(wrapper, "__self__", None) is thing for wrapper in wrapped]
