"""The views of the site: each answer as a sync view and as an async one, classes, and decorated ones.

Which thread may touch what. Views run wherever the handler runs them.
"""

import functools
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import decorator_from_middleware, method_decorator
from django.views import View
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.clickjacking import xframe_options_exempt
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables
from django.views.decorators.gzip import gzip_page
from django.views.decorators.http import condition, require_POST
from django.views.decorators.vary import vary_on_headers
from django.views.generic import RedirectView, TemplateView

from tests.handlers.differential.answers import ANSWERS
from tests.handlers.differential.hooks import hooks_of, mixin
from tests.handlers.differential.trace import keep, note

__all__ = ("VIEWS",)

AnyView = Callable[..., Any]
Decorator = Callable[[AnyView], AnyView]


def sync_view(name: str) -> AnyView:
    """Return a sync view with an answer of the table."""

    def view(request: HttpRequest, **given: object) -> Any:
        note("view", view.__name__, given)
        return ANSWERS[name](request)

    return _named(view, f"sync_{name}")


def async_view(name: str) -> AnyView:
    """Return an async view with an answer of the table."""

    async def view(request: HttpRequest, **given: object) -> Any:
        note("view", view.__name__, given)
        return ANSWERS[name](request)

    return _named(view, f"async_{name}")


def _named(view: AnyView, name: str) -> AnyView:
    view.__name__ = view.__qualname__ = name
    return view


async def crossing(request: HttpRequest) -> HttpResponse:
    """Go to the thread and back."""
    response: HttpResponse = await sync_to_async(ANSWERS["context"])(request)
    return response


# --- Classes ------------------------------------------------------------------------


class SyncClass(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        note("view", "SyncClass.get")
        return HttpResponse("got")

    @method_decorator(csrf_protect)
    def post(self, request: HttpRequest) -> HttpResponse:
        note("view", "SyncClass.post")
        return HttpResponse("posted")


class AsyncClass(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        note("view", "AsyncClass.get")
        return HttpResponse("got")

    async def post(self, request: HttpRequest) -> HttpResponse:
        note("view", "AsyncClass.post")
        raise ValueError("no posting")


class AsObject:
    """An object as a view."""

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("called")


class NoneObject:
    """An object as a view that returns nothing; Django names its class."""

    def __call__(self, request: HttpRequest) -> None: ...


# --- Decorators ---------------------------------------------------------------------


def careless(view: AnyView) -> AnyView:
    """Decorate any view with a sync function, which makes an async view one that returns a coroutine."""

    @functools.wraps(view)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return keep(view(*args, **kwargs))

    return wrapper


middleware_decorator = decorator_from_middleware(mixin("decorator", hooks_of("decorator", "qvtxr")))
DECORATORS: dict[str, Decorator] = {
    "careless": careless,
    "csrf_exempt": csrf_exempt,
    "csrf_protect": csrf_protect,
    "never_cache": never_cache,
    "cache_control": cache_control(public=True, max_age=60),
    "vary": vary_on_headers("X-One", "X-Two"),
    "xframe_exempt": xframe_options_exempt,
    "require_post": require_POST,
    "gzip": gzip_page,
    "condition": condition(etag_func=lambda request, **_: '"1"'),
    "sensitive": sensitive_post_parameters("password"),
    "sensitive_variables": sensitive_variables("password"),
    "middleware": middleware_decorator,
}
_DECORATED = ("ok", "template", "raises_ValueError")

VIEWS: dict[str, AnyView] = {
    **{f"sync_{name}": sync_view(name) for name in ANSWERS},
    **{f"async_{name}": async_view(name) for name in ANSWERS},
    **{
        f"{side}_{answer}_{name}": decorate(make(answer))
        for name, decorate in DECORATORS.items()
        for answer in _DECORATED
        for side, make in (("sync", sync_view), ("async", async_view))
    },
    "async_crossing": crossing,
    "sync_class": SyncClass.as_view(),
    "async_class": AsyncClass.as_view(),
    "sync_object": AsObject(),
    "sync_object_none": NoneObject(),
    "sync_partial": functools.partial(sync_view("ok"), extra=1),
    "async_partial": functools.partial(async_view("ok"), extra=1),
    "sync_template_view": TemplateView.as_view(
        template_name="page.html", extra_context={"text": 1}
    ),
    "sync_redirect_view": RedirectView.as_view(url="/sync_ok/", query_string=True),
}
