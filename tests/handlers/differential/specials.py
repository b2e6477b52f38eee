"""Shapes of middleware that fit in no table: each does one thing that some middleware somewhere does.

Which thread may touch what. Classes and functions are made when a handler loads them, and do not change.
"""

import asyncio
import contextlib
from collections.abc import Callable
from contextvars import Token
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import async_only_middleware, sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin

from tests.handlers.differential.behaviours import mark
from tests.handlers.differential.hooks import Shape, hook, mixin
from tests.handlers.differential.trace import colour, describe, keep, keeping, note

__all__ = ("SPECIALS", "UNUSABLE")

GetResponse = Callable[[Any], Any]
SPECIALS: dict[str, Shape] = {}
UNUSABLE: dict[str, Shape] = {}
"""With one of these no handler can be made."""


def _special(shape: Shape) -> Shape:
    SPECIALS[shape.__name__] = shape
    return shape


def _unusable(shape: Shape) -> Shape:
    UNUSABLE[shape.__name__] = shape
    return shape


# --- Context variables ----------------------------------------------------------------


@_special
def resets_token(label: str) -> Any:
    """Set a context variable in one hook, and reset it with its token in another."""

    class Middleware(MiddlewareMixin):
        def process_request(self, request: HttpRequest) -> None:
            request.token = colour.set(label)  # type: ignore[attr-defined]  # as middleware does
            note(label, "sets")

        def process_response(self, request: HttpRequest, response: Any) -> Any:
            note(label, "resets")
            _reset(label, request)
            return mark(label, response)

    return Middleware


@_special
def resets_token_around(label: str) -> Any:
    """Do it in one async call, which needs no help from a handler."""

    @async_only_middleware
    def factory(get_response: GetResponse) -> Any:
        @keeping
        async def middleware(request: HttpRequest) -> Any:
            request.token = colour.set(label)  # type: ignore[attr-defined]  # as above
            response = await get_response(request)
            _reset(label, request)
            return response

        return middleware

    return factory


@_special
def resets_token_around_sync(label: str) -> Any:
    def factory(get_response: GetResponse) -> Any:
        def middleware(request: HttpRequest) -> Any:
            request.token = colour.set(label)  # type: ignore[attr-defined]  # as above
            response = keep(get_response(request))
            _reset(label, request)
            return response

        return middleware

    return factory


def _reset(label: str, request: Any) -> None:
    token: Token[str] = request.token
    # That is what it raises in another context than that of the token.
    with contextlib.suppress(ValueError):
        colour.reset(token)
        note(label, "has reset")


@_special
def colours_in_view_hooks(label: str) -> Any:
    """Set the variable wherever the handler itself calls a hook."""

    def colours(_label: str, request: HttpRequest, response: Any, *_: object) -> Any:
        colour.set(f"{colour.get()}~{label}")
        return response if isinstance(response, HttpResponse) else None

    names = ("process_view", "process_template_response", "process_exception")
    return mixin(label, {name: hook(label, name, colours) for name in names})


# --- How often, where and with what the rest is called -------------------------------------


@_special
def calls_twice(label: str) -> Any:
    @sync_and_async_middleware
    def factory(get_response: GetResponse) -> Any:
        @keeping
        async def middleware(request: HttpRequest) -> Any:
            first = await get_response(request)
            note(label, "has", describe(first))
            return await get_response(request)

        return middleware

    return factory


@_special
def calls_twice_sync(label: str) -> Any:
    def factory(get_response: GetResponse) -> Any:
        def middleware(request: HttpRequest) -> Any:
            first = keep(get_response(request))
            note(label, "has", describe(first))
            return keep(get_response(request))

        return middleware

    return factory


@_special
def calls_in_task(label: str) -> Any:
    """Call the rest in a task of its own, under a limit."""

    @async_only_middleware
    def factory(get_response: GetResponse) -> Any:
        @keeping
        async def middleware(request: HttpRequest) -> Any:
            note(label, "starts a task")
            response = await asyncio.wait_for(asyncio.create_task(get_response(request)), 20)
            note(label, "has", describe(response))
            return response

        return middleware

    return factory


@_special
def crosses_before(label: str) -> Any:
    """Go to the thread and back before the rest is called."""

    @async_only_middleware
    def factory(get_response: GetResponse) -> Any:
        @keeping
        async def middleware(request: HttpRequest) -> Any:
            await sync_to_async(note)(label, "in the thread")
            return await get_response(request)

        return middleware

    return factory


@_special
def crosses_before_sync(label: str) -> Any:
    """Go to the loop and back before the rest is called."""

    async def on_the_loop() -> None:
        note(label, "on the loop")

    def factory(get_response: GetResponse) -> Any:
        def middleware(request: HttpRequest) -> Any:
            async_to_sync(on_the_loop)()
            return keep(get_response(request))

        return middleware

    return factory


@_special
def passes_another_request(label: str) -> Any:
    """Hand a request on that is another object."""

    def factory(get_response: GetResponse) -> Any:
        def middleware(request: HttpRequest) -> Any:
            other = type(request)(request.scope, request._stream)  # type: ignore[call-arg, attr-defined]  # Django's ASGIRequest
            other.path_info = "/sync_language/"
            note(label, "hands on another")
            return keep(get_response(other))

        return middleware

    return factory


@_special
def routes(label: str) -> Any:
    """Change the path before the URL is resolved."""

    def rewrite(_label: str, request: HttpRequest) -> None:
        request.path_info = f"/async_{request.path_info.partition('_')[2]}"

    return mixin(label, {"process_request": hook(label, "process_request", rewrite)})


# --- Errors -------------------------------------------------------------------------


@_special
def catches(label: str) -> Any:
    """Try to catch what never comes: inner layers make responses of errors."""

    def factory(get_response: GetResponse) -> Any:
        def middleware(request: HttpRequest) -> Any:
            try:
                return mark(label, keep(get_response(request)))
            except Exception as error:
                note(label, "caught", describe(error))
                raise

        return middleware

    return factory


@_special
def raises_from_an_error(label: str) -> Any:
    """Have an exception hook raise from what it is given."""

    def chain(_label: str, request: HttpRequest, error: Exception) -> None:
        raise LookupError("of the hook") from error

    return mixin(label, {"process_exception": hook(label, "process_exception", chain)})


@_special
def reraises(label: str) -> Any:
    """Have an exception hook raise what it is given."""

    def reraise(_label: str, request: HttpRequest, error: Exception) -> None:
        raise error

    return mixin(label, {"process_exception": hook(label, "process_exception", reraise)})


@_special
def calls_the_view(label: str) -> Any:
    """Have a hook call the view, as some caching middleware does."""

    def call(_label: str, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> Any:
        if iscoroutine_view(view):
            return None
        return view(request, *args, **kwargs)

    return mixin(label, {"process_view": hook(label, "process_view", call)})


def iscoroutine_view(view: Any) -> bool:
    """Tell whether calling a view would make a coroutine that nobody awaits."""
    return str(getattr(view, "__name__", "")).startswith("async")


# --- Loading ------------------------------------------------------------------------


@_special
def is_not_used(label: str) -> Any:
    def factory(get_response: GetResponse) -> Any:
        raise MiddlewareNotUsed

    return factory


@_special
def is_not_used_and_says_why(label: str) -> Any:
    @async_only_middleware
    def factory(get_response: GetResponse) -> Any:
        raise MiddlewareNotUsed(f"{label} is not needed")

    return factory


@_unusable
def is_none(label: str) -> Any:
    return lambda get_response: None


@_unusable
def is_neither(label: str) -> Any:
    return type(label, (MiddlewareMixin,), {"sync_capable": False, "async_capable": False})


@_unusable
def fails_to_load(label: str) -> Any:
    def factory(get_response: GetResponse) -> Any:
        raise LookupError(f"{label} cannot be loaded")

    return factory
