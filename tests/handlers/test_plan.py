"""Plans: which middleware is nothing but hooks, and what becomes of the others."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse
from django.middleware.security import SecurityMiddleware
from django.test import override_settings
from django.urls import path
from django.utils.decorators import async_only_middleware, sync_only_middleware
from django.utils.deprecation import MiddlewareMixin

from django_asyncbridge.handlers.asgi import ASGIHandler
from django_asyncbridge.handlers.plan import Plan, enclosing, is_plain, is_transparent
from django_asyncbridge.handlers.sides import Side
from django_asyncbridge.middleware import ThreadSensitiveContextMiddleware
from django_asyncbridge.safety import async_safe

urlpatterns = [path("", lambda request: HttpResponse("view"))]
pytestmark = pytest.mark.urls(__name__)


class Hooks(MiddlewareMixin):
    """Nothing but hooks."""

    def process_request(self, request: HttpRequest) -> None: ...

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> None: ...

    def process_exception(self, request: HttpRequest, exception: Exception) -> None: ...


class AsyncHooks(Hooks):
    """The hooks around the view may be async."""

    async def process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> None: ...  # type: ignore[override]

    async def process_exception(self, request: Any, exception: Any) -> None: ...  # type: ignore[override]


class Marked(Hooks):
    """A hook that never blocks."""

    @async_safe
    def process_request(self, request: HttpRequest) -> None: ...


class OwnCall(Hooks):
    """Calls the rest in a way of its own."""

    def __call__(self, request: HttpRequest) -> Any: ...


class OwnAsyncCall(Hooks):
    """The same in async mode."""

    async def __acall__(self, request: HttpRequest) -> Any: ...


class AsyncRequest(MiddlewareMixin):
    """What Django refuses when it is called."""

    async def process_request(self, request: HttpRequest) -> None: ...


class Unused(MiddlewareMixin):
    """Does not want to be there."""

    def __init__(self, get_response: Any) -> None:
        raise MiddlewareNotUsed


class Wrapping(Hooks):
    """Has put something of its own around the rest."""

    def __init__(self, get_response: Any) -> None:
        super().__init__(get_response)
        self.get_response = functools.partial(get_response)


@sync_only_middleware
def sync_only(get_response: Any) -> Any:
    return functools.partial(get_response)


@async_only_middleware
def async_only(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any: ...

    return middleware


def none(get_response: Any) -> Any:
    return None


def never(request: HttpRequest) -> HttpResponse:
    raise AssertionError


@pytest.mark.parametrize(
    ("cls", "plain"),
    [
        (Hooks, True),
        (AsyncHooks, True),
        (Marked, True),
        (SecurityMiddleware, True),
        (ThreadSensitiveContextMiddleware, False),
        (OwnCall, False),
        (OwnAsyncCall, False),
        (AsyncRequest, False),
    ],
)
def test_middleware_is_plain_if_it_is_nothing_but_hooks(
    cls: Callable[..., Any], plain: bool
) -> None:
    assert is_plain(cls(never)) is plain


def test_middleware_that_wraps_another_way_is_not_plain() -> None:
    assert not is_plain(sync_only(never))


def test_middleware_of_ours_is_transparent_but_not_a_subclass_of_it() -> None:
    class Own(ThreadSensitiveContextMiddleware):
        """May do anything."""

    assert is_transparent(ThreadSensitiveContextMiddleware(never))
    assert not is_transparent(Own(never))


def test_enclosing_adds_a_layer_outside() -> None:
    inside = enclosing(Hooks(never), Plan())
    plan = enclosing(SecurityMiddleware(never), inside)
    assert plan.layers[1:] == inside.layers
    assert plan.layers[0].process_response is not None
    assert inside.layers[0].process_response is None


def sides_of(*names: str) -> tuple[ASGIHandler, list[str]]:
    """Load middlewares, and tell what the plan makes of them."""
    with override_settings(MIDDLEWARE=[f"{__name__}.{name}" for name in names]):
        handler = ASGIHandler()
    plan = handler.plan
    sides = [
        "-" if layer.process_request is None else layer.process_request.side.value
        for layer in plan.layers
    ]
    core = "view" if plan.core is None else f"around on {plan.core.side.value}"
    return handler, [*sides, core]


@pytest.mark.parametrize(
    ("names", "plan"),
    [
        ([], ["view"]),
        (["Hooks", "Marked"], ["thread", "any", "view"]),
        # What is inside of another shape is not part of the plan: it runs that itself.
        (["Hooks", "sync_only", "Hooks"], ["thread", "around on thread"]),
        (["Marked", "async_only", "Hooks"], ["any", "around on loop"]),
        (["OwnCall"], ["around on loop"]),
        # Outside of a sync one Django makes everything sync that can be: hooks do not mind.
        (["Marked", "OwnCall", "sync_only"], ["any", "around on thread"]),
        (["Wrapping", "Hooks"], ["around on loop"]),
        (["AsyncRequest"], ["around on loop"]),
        (["Unused", "Hooks"], ["thread", "view"]),
        (["Hooks", "Unused"], ["thread", "view"]),
    ],
)
def test_handler_makes_a_plan_of_middlewares(names: list[str], plan: list[str]) -> None:
    assert sides_of(*names)[1] == plan


def test_handler_leaves_out_the_middleware_that_does_what_it_does_itself() -> None:
    name = "django_asyncbridge.middleware.ThreadSensitiveContextMiddleware"
    with override_settings(MIDDLEWARE=[name, f"{__name__}.Hooks"]):
        assert len(ASGIHandler().plan.layers) == 1


def test_handler_has_the_hooks_around_the_view_in_their_order() -> None:
    handler, _ = sides_of("Hooks", "AsyncHooks")
    assert [step.side for step in handler.hooks.view] == [Side.THREAD, Side.LOOP]
    # Innermost first.
    assert [step.side for step in handler.hooks.exception] == [Side.LOOP, Side.THREAD]


@pytest.mark.parametrize(
    ("name", "error"), [("none", ImproperlyConfigured), ("missing", ImportError)]
)
def test_handler_with_a_middleware_that_cannot_be_used_raises_what_django_raises(
    name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        sides_of(name)
