"""Shapes of middleware that wrap the rest themselves: functions, and classes with a ``__call__`` of their own.

Each form is made with a behaviour before the rest and one after it.

Which thread may touch what. Classes and functions are made when a handler loads them, and do not change.
"""

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.utils.decorators import (
    async_only_middleware,
    sync_and_async_middleware,
    sync_only_middleware,
)
from django.utils.deprecation import MiddlewareMixin

from tests.handlers.differential.behaviours import AFTER, BEFORE, Behaviour
from tests.handlers.differential.hooks import Shape, hooks_of
from tests.handlers.differential.trace import describe, keep, keeping, note

__all__ = ("FORMS", "ODD_WRAPS", "WRAPS")

GetResponse = Callable[[Any], Any]
"""A form takes a label, what to do before the rest, and what to do after it."""
Form = Callable[[str, Behaviour, Behaviour], Any]


class Around:
    """What a wrapping middleware does before and after the rest, sync and async."""

    def __init__(self, label: str, before: Behaviour, after: Behaviour) -> None:
        self.label, self.before, self.after = label, before, after

    def call(self, get_response: GetResponse, request: HttpRequest) -> Any:
        """Be a sync middleware."""
        early = self.enter(request)
        return early if early is not None else self.leave(request, keep(get_response(request)))

    async def acall(self, get_response: GetResponse, request: HttpRequest) -> Any:
        """Be an async middleware."""
        early = self.enter(request)
        if early is not None:
            return early
        return self.leave(request, await get_response(request))

    def enter(self, request: HttpRequest) -> Any:
        note(self.label, "enters")
        return self.before(self.label, request)

    def leave(self, request: HttpRequest, response: Any) -> Any:
        note(self.label, "leaves", describe(response))
        return self.after(self.label, request, response)


# --- Classes ------------------------------------------------------------------------


def class_sync(label: str, before: Behaviour, after: Behaviour) -> Any:
    around = Around(label, before, after)

    class Middleware:
        def __init__(self, get_response: GetResponse) -> None:
            self.get_response = get_response

        def __call__(self, request: HttpRequest) -> Any:
            return around.call(self.get_response, request)

    return _named(Middleware, label)


def class_sync_with_hooks(label: str, before: Behaviour, after: Behaviour) -> Any:
    plain = class_sync(label, before, after)
    return type(label, (plain,), hooks_of(label, "qvtxr"))


def class_async(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Be async, and say so as Django's documentation does."""
    plain = class_async_unmarked(label, before, after)

    class Middleware(plain):  # type: ignore[misc, valid-type]  # classes are made on the fly here
        def __init__(self, get_response: GetResponse) -> None:
            super().__init__(get_response)
            markcoroutinefunction(self)

    return _named(Middleware, label)


def class_async_with_hooks(label: str, before: Behaviour, after: Behaviour) -> Any:
    plain = class_async(label, before, after)
    return type(label, (plain,), hooks_of(label, "vtx"))


def class_async_unmarked(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Forget to say that the instance is async."""
    around = Around(label, before, after)

    class Middleware:
        sync_capable, async_capable = False, True

        def __init__(self, get_response: GetResponse) -> None:
            self.get_response = get_response

        @keeping
        async def __call__(self, request: HttpRequest) -> Any:
            return await around.acall(self.get_response, request)

    return _named(Middleware, label)


def class_both(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Be what the rest is, and say so."""
    plain = class_both_unmarked(label, before, after)

    class Middleware(plain):  # type: ignore[misc, valid-type]  # as above
        def __init__(self, get_response: GetResponse) -> None:
            super().__init__(get_response)
            if self.is_async:
                markcoroutinefunction(self)

    return _named(Middleware, label)


def class_both_unmarked(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Be what the rest is, and forget to say so."""
    around = Around(label, before, after)

    class Middleware:
        sync_capable = async_capable = True

        def __init__(self, get_response: GetResponse) -> None:
            self.get_response, self.is_async = get_response, iscoroutinefunction(get_response)

        def __call__(self, request: HttpRequest) -> Any:
            call = around.acall if self.is_async else around.call
            return keep(call(self.get_response, request))

    return _named(Middleware, label)


# --- Functions ----------------------------------------------------------------------


def function_sync(label: str, before: Behaviour, after: Behaviour) -> Any:
    around = Around(label, before, after)

    def factory(get_response: GetResponse) -> Any:
        return lambda request: around.call(get_response, request)

    return factory


def function_sync_marked(label: str, before: Behaviour, after: Behaviour) -> Any:
    return sync_only_middleware(function_sync(label, before, after))


def function_async(label: str, before: Behaviour, after: Behaviour) -> Any:
    around = Around(label, before, after)

    @async_only_middleware
    def factory(get_response: GetResponse) -> Any:
        @keeping
        async def middleware(request: HttpRequest) -> Any:
            return await around.acall(get_response, request)

        return middleware

    return factory


def function_both(label: str, before: Behaviour, after: Behaviour) -> Any:
    as_async = function_async(label, before, after)
    as_sync = function_sync(label, before, after)

    @sync_and_async_middleware
    def factory(get_response: GetResponse) -> Any:
        make = as_async if iscoroutinefunction(get_response) else as_sync
        return make(get_response)

    return factory


def function_with_hooks(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Give a function what Django looks for on it."""
    plain = function_both(label, before, after)

    @sync_and_async_middleware
    def factory(get_response: GetResponse) -> Any:
        middleware = plain(get_response)
        for name, method in hooks_of(label, "vtx").items():
            setattr(middleware, name, types.MethodType(method, middleware))
        return middleware

    return factory


def partial_of_class(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Be a partial object: Django finds no mark on it, and takes it for sync."""
    return functools.partial(class_both(label, before, after))


# --- Subclasses of MiddlewareMixin that do it their own way ------------------------------


def mixin_call(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Override ``__call__``; what comes from the original may be a coroutine."""
    around = Around(label, before, after)

    def call(self: Any, request: HttpRequest) -> Any:
        rest = functools.partial(MiddlewareMixin.__call__, self)
        return keep((around.acall if self.async_mode else around.call)(rest, request))

    return type(label, (MiddlewareMixin,), {"__call__": call, **hooks_of(label, "qvtxr")})


def mixin_acall(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Override ``__acall__``, and not ``__call__``."""
    around = Around(label, before, after)

    @keeping
    async def acall(self: Any, request: HttpRequest) -> Any:
        rest = functools.partial(MiddlewareMixin.__acall__, self)
        return await around.acall(rest, request)

    return type(label, (MiddlewareMixin,), {"__acall__": acall, **hooks_of(label, "qvtxr")})


def mixin_async_call(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Override ``__call__`` with a coroutine function that calls no hooks."""
    around = Around(label, before, after)

    @keeping
    async def call(self: Any, request: HttpRequest) -> Any:
        return await around.acall(self.get_response, request)

    own = {"__call__": call, "sync_capable": False, **hooks_of(label, "qvtxr")}
    return type(label, (MiddlewareMixin,), own)


def mixin_init(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Have ``__init__`` wrap the rest."""
    around = function_both(label, before, after)

    def init(self: Any, get_response: GetResponse) -> None:
        MiddlewareMixin.__init__(self, around(get_response))

    return type(label, (MiddlewareMixin,), {"__init__": init, **hooks_of(label, "qvtxr")})


def mixin_late(label: str, before: Behaviour, after: Behaviour) -> Any:
    """Have ``__init__`` replace the rest after Django's has looked at it."""
    around = function_both(label, before, after)

    def init(self: Any, get_response: GetResponse) -> None:
        MiddlewareMixin.__init__(self, get_response)
        self.get_response = around(get_response)

    return type(label, (MiddlewareMixin,), {"__init__": init, **hooks_of(label, "qvtxr")})


def mixin_sync_only(label: str, before: Behaviour, after: Behaviour) -> Any:
    return type(label, (mixin_init(label, before, after),), {"async_capable": False})


def mixin_async_only(label: str, before: Behaviour, after: Behaviour) -> Any:
    return type(label, (mixin_init(label, before, after),), {"sync_capable": False})


def _named(cls: type, label: str) -> type:
    cls.__name__ = cls.__qualname__ = label
    return cls


# --- The table ----------------------------------------------------------------------

FORMS: dict[str, Form] = {
    form.__name__: form
    for form in (
        class_sync,
        class_sync_with_hooks,
        class_async,
        class_async_with_hooks,
        class_async_unmarked,
        class_both,
        function_sync,
        class_both_unmarked,
        function_sync_marked,
        function_async,
        function_both,
        function_with_hooks,
        partial_of_class,
        mixin_call,
        mixin_acall,
        mixin_async_call,
        mixin_init,
        mixin_late,
        mixin_sync_only,
        mixin_async_only,
    )
}
_BEFORE = (
    "answers",
    "answers_page",
    "raises_ValueError",
    "raises_Http404",
    "raises_SuspiciousOperation",
    "colours",
    "reads_form",
    "sets_urlconf",
)
_AFTER = (
    "answers_none",
    "answers_zero",
    "raises_ValueError",
    "raises_PermissionDenied",
    "colours",
    "maps_content",
    "streams",
    "streams_async",
)


def _shape(form: Form, before: str = "passes", after: str = "passes") -> Shape:
    return lambda label: form(label, BEFORE[before], AFTER[after])


def _odd(numbered_form: int, behaviours: tuple[str, ...]) -> Iterator[str]:
    """Yield every other behaviour, the others with the next form: half of the stacks find as much."""
    yield from behaviours[numbered_form % 2 :: 2]


WRAPS: dict[str, Shape] = {name: _shape(form) for name, form in FORMS.items()}
ODD_WRAPS: dict[str, Shape] = {
    f"{name}__{behaviour}_before": _shape(form, before=behaviour)
    for number, (name, form) in enumerate(FORMS.items())
    for behaviour in _odd(number, _BEFORE)
} | {
    f"{name}__{behaviour}_after": _shape(form, after=behaviour)
    for number, (name, form) in enumerate(FORMS.items())
    for behaviour in _odd(number, _AFTER)
}
