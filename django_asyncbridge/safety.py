"""Sync code that never blocks: the mark that lets it run on the event loop. The opposite of Django's ``async_unsafe``.

Sync code may block, so it is taken to a thread, and each such crossing costs more than most small functions do. A function that only
computes needs no thread. Nobody can see that from outside; its author says so, with the decorator `async_safe`
or, for code of others, with ``ASYNCBRIDGE["ASYNC_SAFE"]``. `is_async_safe` answers for any object. `sync_to_async` asks it at
each call, once anything is marked: so Django's own hooks and receivers, which it calls through there, run without a crossing.

The mark is a promise about one piece of code, so it never reaches other code. A wrapper is not what it wraps: what a decorator adds
may block, so ``__wrapped__`` is not followed, and neither a mark nor a name that `functools.wraps` copies counts. A mark on a class is for the hooks
that this class has, own or inherited; a hook that a subclass overrides is other code.

Which thread may touch what. Any thread may ask. Marks are made where code is defined. The set of names is replaced as a whole.
"""

import functools
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from django_asyncbridge.bridge import _state, _wrapping

__all__ = (
    "HOOKS",
    "async_safe",
    "definition_path",
    "is_async_safe",
    "name_async_safe",
    "refusal",
)

F = TypeVar("F", bound=Callable[..., Any])

HOOKS = (
    "__call__",
    "process_request",
    "process_view",
    "process_template_response",
    "process_response",
    "process_exception",
)
"""The methods of a class that a mark on the class is about: Django's middleware hooks, and being called."""

_MARK = "_asyncbridge_async_safe"

# What ASYNC_SAFE names.
_named: frozenset[str] = frozenset()
# Another object whenever an answer of `is_async_safe` may have changed, for who keeps them.
version: object = object()


# --- Marking -----------------------------------------------------------------------


def async_safe(func: F) -> F:
    """Mark sync code as never blocking, so that it may run on the event loop, and return it.

    It must not touch the database, files, the network, locks that are held for long, or anything that Django marks with
    ``async_unsafe``; it must not compute for long either, since every request in the process waits meanwhile. It may run
    in any thread: in the loop's under ASGI, in a worker under WSGI or where the request is in a worker anyway.

    On a class it is for what `HOOKS` names, as far as the class has it. A subclass that overrides one of them has to be
    marked itself, and one that overrides what a hook calls should be looked at. Use it as the outermost decorator.

    Args:
        func: a function, a method, or a class whose instances are callable or middleware.

    Raises:
        TypeError: when there is nothing to mark: no callable, async code, an object instead of its class.

    Source: Django's documentation, "Async safety", for what the opposite, ``async_unsafe``, protects.
    """
    reason = refusal(func)
    if reason is None:
        target = _function_of(func)
        try:
            # A reference to the object itself: functools.wraps copies attributes to the wrapper.
            setattr(target, _MARK, weakref.ref(target))
            _has_changed()
            _state.runs_anywhere = is_async_safe
        except (AttributeError, TypeError):
            reason = "it takes no attributes; mark a function of yours that calls it"
    if reason is not None:
        raise TypeError(f"async_safe cannot mark {_wrapping.describe(func)}: {reason}")
    return func


def refusal(obj: object) -> str | None:
    """Return why an object cannot be marked as async-safe, as the end of a sentence about it; None if it can."""
    if isinstance(obj, type):
        if any(_is_sync(_hook(obj, name)) for name in HOOKS):
            return None
        return f"the class has no sync hook, which would be one of {', '.join(HOOKS)}"
    # A class method is no callable before it belongs to its class.
    obj = _function_of(obj)
    if not callable(obj):
        return "it is not callable"
    if _wrapping.is_async(obj) or _wrapping.is_async_generator_function(obj):
        return "it is async: that always runs on the event loop, and needs no mark"
    if isinstance(obj, functools.partial):
        return "it is a partial object; mark the function that it calls"
    if isinstance(_hook(type(obj), "__call__"), types.FunctionType):
        return f"it is an object; mark its class, {type(obj).__qualname__}"
    return None


def name_async_safe(paths: Iterable[str]) -> None:
    """Take code as async-safe by its dotted path, instead of what was named before.

    A path is where the code is defined, its module and qualified name. Nothing is imported.

    Args:
        paths: of functions, methods ("mysite.middleware.Stamp.process_request") and classes.
    """
    global _named
    _named = frozenset(paths)
    _has_changed()
    if _named:
        _state.runs_anywhere = is_async_safe


def _has_changed() -> None:
    global version
    version = object()


# --- Asking ------------------------------------------------------------------------


def is_async_safe(obj: object) -> bool:
    """Tell whether calling `obj` is known never to block.

    A bound method is safe if its function is, or if the class says so for this hook; a callable object if its ``__call__`` is; a partial
    object if what it calls is; a class, as a whole, if it is marked itself. Async code is not: there is nothing to decide about it.
    """
    while isinstance(obj, functools.partial):
        obj = obj.func
    if isinstance(obj, type):
        return _is_marked(obj)
    if _wrapping.is_async(obj):
        return False
    if isinstance(obj, types.MethodType):
        owner = obj.__self__ if isinstance(obj.__self__, type) else type(obj.__self__)
        return _is_marked(obj.__func__) or _class_vouches(owner, obj.__func__)
    if _is_marked(_function_of(obj)):
        return True
    called = _hook(type(obj), "__call__")
    return called is not None and (_is_marked(called) or _class_vouches(type(obj), called))


def definition_path(obj: object) -> str | None:
    """Return the dotted path by which `name_async_safe` knows a piece of code; None if it has none of its own.

    The function of a bound method counts. Objects have no path, and a wrapper has only borrowed that of what it wraps.
    """
    function = _function_of(obj)
    module, qualname = (getattr(function, name, None) for name in ("__module__", "__qualname__"))
    if module is None or qualname is None or "__wrapped__" in getattr(function, "__dict__", ()):
        return None
    return f"{module}.{qualname}"


def _is_marked(code: object) -> bool:
    """Tell whether this very function or class is marked or named."""
    mark = getattr(code, "__dict__", {}).get(_MARK)
    if mark is not None and mark() is code:
        return True
    return bool(_named) and definition_path(code) in _named


def _class_vouches(cls: type, function: object) -> bool:
    """Tell whether a marked class among `cls` and its bases has this very function as one of its hooks."""
    for base in cls.__mro__:
        if _is_marked(base):
            for name in HOOKS:
                if _hook(base, name) is function:
                    # Calling a middleware runs its hooks, so they all have to be what was marked.
                    run = HOOKS if name == "__call__" else ()
                    return all(_hook(cls, one) is _hook(base, one) for one in run)
    return False


def _hook(cls: type, name: str) -> Any:
    """Return the function that instances of a class have under a name, or None."""
    for base in cls.__mro__:
        if name in vars(base):
            return _function_of(vars(base)[name])
    return None


def _function_of(obj: Any) -> Any:
    """Return what a method object or a static or class method runs, anything else as it is."""
    if isinstance(obj, types.MethodType | staticmethod | classmethod):
        return obj.__func__
    return obj


def _is_sync(function: object) -> bool:
    return callable(function) and not _wrapping.is_async(function)
