"""Checks of ``MIDDLEWARE``: what makes each request cross to a thread and back, and the order.

Only the classes and functions are looked at; no middleware is made. One that cannot be imported is Django's to report, and left out here.
"""

import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.core.checks import CheckMessage, Warning  # noqa: A004  # Django's name for it
from django.utils.module_loading import import_string

from django_asyncbridge.bridge import _wrapping

__all__ = ("check_middleware", "check_middleware_order")

_CONTEXT_MIDDLEWARE = "django_asyncbridge.middleware.ThreadSensitiveContextMiddleware"

# What a sync __call__ looks at, or hands over to, when it also serves the async way.
_ASYNC_WAYS = frozenset(
    {
        "__acall__",
        "__call__",
        "async_mode",
        "is_async",
        "isawaitable",
        "iscoroutine",
        "iscoroutinefunction",
        "super",
    }
)


class _Layer(NamedTuple):
    """A line of ``MIDDLEWARE`` and what it names."""

    path: str
    factory: Any

    @property
    def async_capable(self) -> bool:
        return bool(getattr(self.factory, "async_capable", False))

    @property
    def sync_only(self) -> bool:
        # One that is neither cannot be loaded; Django says so.
        return not self.async_capable and bool(getattr(self.factory, "sync_capable", True))


def check_middleware(**_kwargs: object) -> list[CheckMessage]:
    """Return W001, W002 and W003: middleware that forces crossings, or breaks in an async chain."""
    layers = _layers()
    found: list[CheckMessage] = []
    for position, layer in enumerate(layers):
        after = [one for one in layers[position + 1 :] if one.async_capable]
        if layer.async_capable:
            found += _check_call(layer)
        # After the last async-capable one there is the view, which may need a thread anyway.
        elif after and layer.sync_only:
            before = [one for one in layers[:position] if one.async_capable]
            found.append(_forces_crossings(layer, before, after))
    return found


def _layers() -> list[_Layer]:
    layers = []
    for path in settings.MIDDLEWARE:
        try:
            layers.append(_Layer(path, import_string(path)))
        except Exception:  # noqa: BLE001  # Django says it when it loads the middleware
            continue
    return layers


def _forces_crossings(
    layer: _Layer, before: Sequence[_Layer], after: Sequence[_Layer]
) -> CheckMessage:
    outer = f"'{before[-1].path}'" if before else "the server"
    where = (
        f"It stands between {outer} and '{after[0].path}', which can run on the event loop: "
        f"each request crosses to a thread here and back, and holds it until it is answered."
    )
    move = f"or, if the order allows it, move its line below '{after[-1].path}'."
    if hasattr(layer.factory, "async_capable"):
        number, problem = "W001", "is sync-only"
    else:
        number, problem = (
            "W002",
            "does not say that it can be async, so Django takes it as sync-only",
        )
    return Warning(
        f"The middleware '{layer.path}' {problem}. {where}",
        hint=f"{_BOTH_CLASS if isinstance(layer.factory, type) else _BOTH_FUNCTION}; {move}",
        obj=layer.path,
        id=f"asyncbridge.{number}",
    )


_BOTH_CLASS = (
    "Make it a subclass of django.utils.deprecation.MiddlewareMixin with process_request() and "
    'process_response() instead of __call__(), without "async_capable = False"'
)
_BOTH_FUNCTION = (
    "Put @sync_and_async_middleware (from django.utils.decorators) on it, and return an "
    '"async def middleware(request)" if iscoroutinefunction(get_response)'
)


# --- A __call__ of its own -----------------------------------------------------------


def _check_call(layer: _Layer) -> Iterator[CheckMessage]:
    """Yield W003 for a class that declares itself async-capable and can only be called the sync way."""
    call = getattr(layer.factory, "__call__", None)  # noqa: B004
    # A function is no class, and a class without one of its own has that of `type`.
    if not isinstance(call, types.FunctionType) or _has_async_way(layer.factory, call):
        return
    yield Warning(
        f"The middleware '{layer.path}' is declared async-capable, but its own __call__() has no async way: in an async "
        "chain get_response() returns a coroutine there, not a response.",
        hint=(
            "Write process_request() and process_response() instead of __call__(), in a subclass of "
            "django.utils.deprecation.MiddlewareMixin; or begin its __call__() with "
            '"if self.async_mode: return self.__acall__(request)" and write "async def __acall__(self, request)"; '
            'or say "async_capable = False", and each request crosses to a thread for it.'
        ),
        obj=layer.path,
        id="asyncbridge.W003",
    )


def _has_async_way(cls: type, call: types.FunctionType) -> bool:
    """Tell whether a ``__call__`` seems to know of async: what the code names is all that can be seen from outside."""
    if _wrapping.iscoroutinefunction(call):
        return True
    inner = inspect.unwrap(call)
    codes = [*_codes(call.__code__), *_codes(getattr(inner, "__code__", call.__code__))]
    return any(
        code.co_flags & inspect.CO_COROUTINE
        or not _ASYNC_WAYS.isdisjoint(code.co_names)
        or any(
            _wrapping.iscoroutinefunction(inspect.getattr_static(cls, name, None))
            for name in code.co_names
        )
        for code in codes
    )


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yield the code of a function and of the functions that it defines."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


# --- Order -----------------------------------------------------------------------------


def check_middleware_order(**_kwargs: object) -> list[CheckMessage]:
    """Return W004: something stands before the middleware that gives each request its thread."""
    paths = list(settings.MIDDLEWARE)
    if _CONTEXT_MIDDLEWARE not in paths[1:]:
        return []
    before = ", ".join(f"'{path}'" for path in paths[: paths.index(_CONTEXT_MIDDLEWARE)])
    return [
        Warning(
            f"'{_CONTEXT_MIDDLEWARE}' is not first in MIDDLEWARE: {before} runs outside of its context. With a handler "
            "that makes none itself, that is in another thread, with another database connection, than what follows.",
            hint=f'Move the line "{_CONTEXT_MIDDLEWARE}" to the top of MIDDLEWARE.',
            obj=_CONTEXT_MIDDLEWARE,
            id="asyncbridge.W004",
        )
    ]
