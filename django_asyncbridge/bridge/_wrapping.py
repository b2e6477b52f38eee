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


def refuse_generator_function(func: object, wrapper: str) -> None:
    """Refuse a function whose call only makes a generator.

    Its body would run later, step by step, in whatever thread or loop iterates: not where the wrapper promises.

    Raises:
        TypeError: when `func`, or what it wraps or calls, is a (sync or async) generator function.
    """
    inner = _unwrap_partial(func)
    # A static method's function, and what a callable object runs.
    candidates = (inner, getattr(inner, "__func__", None), getattr(inner, "__call__", None))  # noqa: B004
    if any(map(inspect.isgeneratorfunction, candidates)):
        kind, instead = (
            "generator",
            "wrap a function that returns a list, or one that returns the next item",
        )
    elif any(map(inspect.isasyncgenfunction, candidates)):
        kind, instead = "async generator", "iterate over it with 'async for' in a coroutine"
    else:
        return
    raise TypeError(
        f"{wrapper} cannot wrap the {kind} function {describe(func)}: its body would not run during the call, "
        f"but later where it is iterated; {instead}"
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
