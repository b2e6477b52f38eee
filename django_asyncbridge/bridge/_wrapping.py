"""What a wrapper takes over from the function it wraps, and which functions it takes at all.

Source: promise P9; PEP 252 for binding; `inspect` for coroutine marks.
"""

import asyncio
import functools
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = (
    "bind",
    "describe",
    "is_async",
    "is_async_generator_function",
    "is_generator_function",
    "iscoroutinefunction",
    "look_like",
    "markcoroutinefunction",
    "refuse_generator_function",
    "restore_exception",
)

F = TypeVar("F", bound=Callable[..., Any])

if sys.version_info >= (3, 12):
    iscoroutinefunction = inspect.iscoroutinefunction
    markcoroutinefunction = inspect.markcoroutinefunction
else:
    iscoroutinefunction = asyncio.iscoroutinefunction

    def markcoroutinefunction(func: F) -> F:
        """Have `iscoroutinefunction` say True of a sync callable that returns an awaitable.

        Source: `inspect.markcoroutinefunction`, which Python has from 3.12 on.
        """
        func._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
        return func


# What marks a function as a coroutine function; a sync wrapper must not inherit it.
_COROUTINE_MARKS = ("_is_coroutine", "_is_coroutine_marker")


def is_async(func: object) -> bool:
    """Tell whether calling `func` is known to return a coroutine."""
    return iscoroutinefunction(func) or iscoroutinefunction(getattr(func, "__call__", func))  # noqa: B004


def is_generator_function(func: object) -> bool:
    """Tell whether calling `func` only makes a generator: it, or what it wraps or calls, is a generator function."""
    return any(map(inspect.isgeneratorfunction, _functions_of(func)))


def is_async_generator_function(func: object) -> bool:
    """Tell whether calling `func` only makes an async generator."""
    return any(map(inspect.isasyncgenfunction, _functions_of(func)))


def _functions_of(func: object) -> tuple[object, ...]:
    inner = _unwrap_partial(func)
    # A static method's function, and what a callable object runs.
    return inner, getattr(inner, "__func__", None), getattr(type(inner), "__call__", None)  # noqa: B004


def refuse_generator_function(func: object, wrapper: str) -> None:
    """Refuse a function whose call only makes a generator.

    Its body would run later, step by step, in whatever thread or loop iterates: not where the wrapper promises.

    Args:
        func: any callable.
        wrapper: ``sync_to_async`` or ``async_to_sync``: who cannot take it, or only as a function, not as a class.

    Raises:
        TypeError: when `func`, or what it wraps or calls, is a (sync or async) generator function.
    """
    if is_generator_function(func):
        kind, other = "generator function", "sync_to_async"
        as_it_is = "iterate over it with 'for', or in async code with iterate_in_thread()"
    elif is_async_generator_function(func):
        kind, other = "async generator function", "async_to_sync"
        as_it_is = "iterate over it with 'async for', or in sync code with iterate_on_loop()"
    else:
        return
    name = describe(func)
    if wrapper == other:
        raise TypeError(
            f"a call object of {wrapper} cannot wrap the {kind} {name}: its body would not run during the call, but "
            f"later where it is iterated; use the function, {wrapper}({name}), whose result is to be iterated over"
        )
    raise TypeError(
        f"{wrapper} cannot wrap the {kind} {name}, which is on the right side already; {as_it_is}"
    )


def restore_exception(
    error: BaseException, traceback: types.TracebackType | None, context: BaseException | None
) -> None:
    """Give an exception back what raising it again has changed.

    Through the slots of `BaseException`: exceptions may refuse assignments (frozen dataclasses do).
    """
    slots = vars(BaseException)
    slots["__traceback__"].__set__(error, traceback)
    slots["__context__"].__set__(error, context)


def _unwrap_partial(func: object) -> object:
    while isinstance(func, functools.partial):
        func = func.func
    return func


def describe(func: object) -> str:
    """Return a name of `func` for messages."""
    func = _unwrap_partial(func)
    name = getattr(func, "__qualname__", None) or type(func).__qualname__
    module = getattr(func, "__module__", None)
    return f"{module}.{name}" if module else str(name)


def look_like(wrapper: object, wrapped: Callable[..., Any]) -> None:
    """Give a sync `wrapper` the name, documentation, attributes and signature of an async function."""
    own = set(vars(wrapper))
    functools.update_wrapper(wrapper, wrapped)  # type: ignore[arg-type]  # any object with a __dict__ will do
    for mark in _COROUTINE_MARKS:
        if mark not in own:
            vars(wrapper).pop(mark, None)


def bind(call: F, wrapped: Callable[..., Any], instance: object) -> F:
    """Return `call` as a method of `instance`, looking like `wrapped` bound to it.

    A `staticmethod` inside is not bound to anything; whatever else is wrapped gets the instance as
    its first argument.
    """
    static = isinstance(wrapped, staticmethod)
    bound: Any = functools.partial(call) if static else functools.partial(call, instance)
    functools.update_wrapper(bound, wrapped if static else types.MethodType(wrapped, instance))
    method: F = bound
    return method
