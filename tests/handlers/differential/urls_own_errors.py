"""The site with error pages of its own: they note what is being handled, and one of them is a template."""

import sys
from typing import Any

from django.http import HttpRequest, HttpResponse

from tests.handlers.differential.replies import page
from tests.handlers.differential.trace import describe, note
from tests.handlers.differential.urls import urlpatterns

__all__ = ("bad_request", "denied", "failed", "not_found", "urlpatterns")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    note("handler400", describe(exception))
    return HttpResponse("own 400", status=400)


def denied(request: HttpRequest, exception: Exception) -> Any:
    note("handler403", describe(exception))
    response = page(request, "own 403")
    response.status_code = 403
    return response


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    note("handler404", describe(exception), getattr(request, "resolver_match", None) is not None)
    return HttpResponse("own 404", status=404)


def failed(request: HttpRequest) -> HttpResponse:
    note("handler500", describe(sys.exception()))
    return HttpResponse("own 500", status=500)


handler400 = bad_request
handler403 = denied
handler404 = f"{__name__}.not_found"
handler500 = failed
