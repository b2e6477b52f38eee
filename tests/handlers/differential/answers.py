"""What views answer: one table, of which each entry becomes a sync view and an async one.

Which thread may touch what. Answers are made wherever the handler runs views.
"""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.contrib.auth.models import AnonymousUser
from django.db import connection
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseNotModified,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.middleware.csrf import get_token
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import get_script_prefix, get_urlconf
from django.utils.translation import get_language

from tests.handlers.differential.errors import ERRORS, error_named
from tests.handlers.differential.replies import (
    AsyncPage,
    Closing,
    Falsy,
    Page,
    file,
    page,
    streaming,
)
from tests.handlers.differential.trace import colour, keep, note

__all__ = ("ANSWERS", "FAILURES")

Answer = Callable[[HttpRequest], Any]
FAILURES: dict[str, Answer] = {}


def ok(request: HttpRequest) -> HttpResponse:
    return Closing(f"ok {request.method} {request.path}", headers={"X-View": "ok"})


def long(request: HttpRequest) -> HttpResponse:
    return HttpResponse("long " * 40_000)


def empty(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=204)


def latin(request: HttpRequest) -> HttpResponse:
    return HttpResponse("caf\xe9", content_type="text/plain; charset=latin-1", reason="Fine")


def cookies(request: HttpRequest) -> HttpResponse:
    response = HttpResponse(str(sorted(request.COOKIES.items())))
    response.set_cookie("one", "1", max_age=60, httponly=True)
    response.set_cookie("two", "a b;c")
    response.delete_cookie("three")
    return response


def fails_politely(request: HttpRequest) -> HttpResponse:
    return HttpResponse("sorry", status=503, headers={"Retry-After": "1"})


def not_there(request: HttpRequest) -> HttpResponse:
    return HttpResponse("not there", status=404)


def redirects(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect("/sync_ok/")


def not_modified(request: HttpRequest) -> HttpResponse:
    return HttpResponseNotModified(headers={"ETag": '"1"'})


def meta(request: HttpRequest) -> HttpResponse:
    known = {name: str(value) for name, value in request.META.items()}
    return JsonResponse({**known, "GET": dict(request.GET), "uri": request.build_absolute_uri()})


def language(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{get_language()} {get_urlconf()} {get_script_prefix()}")


def context(request: HttpRequest) -> HttpResponse:
    before = colour.get()
    colour.set(f"{before}+view")
    return HttpResponse(f"from {before!r}")


def host(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.get_host())


def transaction(request: HttpRequest) -> HttpResponse:
    note("view", "in a transaction", connection.in_atomic_block)
    return HttpResponse(str(connection.in_atomic_block))


# --- Bodies -----------------------------------------------------------------------


def form(request: HttpRequest) -> HttpResponse:
    files = {name: (one.name, one.read().decode()) for name, one in request.FILES.items()}  # type: ignore[union-attr]  # never None
    return JsonResponse({"post": dict(request.POST), "files": files})


def body(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body)


def stream(request: HttpRequest) -> HttpResponse:
    return HttpResponse(b"|".join(iter(functools.partial(request.read, 64), b"")))


# --- Sessions and what is kept there ----------------------------------------------------


def session(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(str(request.session["visits"]))


def reads_session(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.session.get("visits")))


def user(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(isinstance(getattr(request, "user", AnonymousUser()), AnonymousUser)))


def token(request: HttpRequest) -> HttpResponse:
    return HttpResponse(get_token(request))


def message(request: HttpRequest) -> HttpResponse:
    messages.info(request, "to be shown once", fail_silently=True)
    return render(request, "seven.html")


# --- Templates --------------------------------------------------------------------


def template(request: HttpRequest) -> TemplateResponse:
    return page(request, "of the view")


def template_async(request: HttpRequest) -> TemplateResponse:
    return page(request, "of the view", AsyncPage)


def template_rendered(request: HttpRequest) -> Any:
    return page(request, "of the view").render()


def template_with_callbacks(request: HttpRequest) -> TemplateResponse:
    response = page(request, "of the view")
    response.add_post_render_callback(lambda one: note("callback", "after", one.status_code))
    response.add_post_render_callback(lambda one: HttpResponse(one.content + b" replaced"))
    return response


def template_missing(request: HttpRequest) -> TemplateResponse:
    return Page(request, "missing.html")


def template_raises(request: HttpRequest) -> TemplateResponse:
    return page(request, "of the view", error="ValueError")


def template_raises_404(request: HttpRequest) -> TemplateResponse:
    return page(request, "of the view", error="Http404")


def template_async_raises(request: HttpRequest) -> TemplateResponse:
    return page(request, "of the view", AsyncPage, error="ValueError")


# --- Streaming --------------------------------------------------------------------


def streams(request: HttpRequest) -> StreamingHttpResponse:
    return streaming("view", as_async=False)


def streams_async(request: HttpRequest) -> StreamingHttpResponse:
    return streaming("view", as_async=True)


def streams_list(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse([b"one", "two", b""])


def streams_and_raises(request: HttpRequest) -> StreamingHttpResponse:
    return streaming("view", as_async=False, error="ValueError")


def streams_async_and_raises(request: HttpRequest) -> StreamingHttpResponse:
    return streaming("view", as_async=True, error="ValueError")


def sends_file(request: HttpRequest) -> Any:
    return file("view")


# --- What is no answer ---------------------------------------------------------------


def none(request: HttpRequest) -> None:
    return None


def zero(request: HttpRequest) -> int:
    return 0


def falsy(request: HttpRequest) -> HttpResponse:
    return Falsy("not true")


def coroutine(request: HttpRequest) -> Any:
    async def never() -> None: ...

    return keep(never())


def cancelled(request: HttpRequest) -> None:
    raise asyncio.CancelledError


def _failure(error: str, reads: bool) -> Answer:
    def fail(request: HttpRequest) -> None:
        if reads:
            note("view", "reads", len(request.body))
        raise error_named(error)

    return fail


FAILURES.update({f"raises_{error}": _failure(error, reads=False) for error in ERRORS})
FAILURES.update({f"reads_and_raises_{error}": _failure(error, reads=True) for error in ERRORS})
ANSWERS: dict[str, Answer] = {
    answer.__name__: answer
    for answer in (
        *(ok, long, empty, latin, cookies, fails_politely, not_there, redirects, not_modified),
        *(meta, language, context, host, transaction, form, body, stream),
        *(session, reads_session, user, token, message),
        *(template, template_async, template_rendered, template_with_callbacks, template_missing),
        *(template_raises, template_raises_404, template_async_raises),
        *(streams, streams_async, streams_list, streams_and_raises, streams_async_and_raises),
        *(sends_file, none, zero, falsy, coroutine, cancelled),
    )
} | FAILURES
