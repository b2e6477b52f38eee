"""The site with error pages that raise themselves."""

import sys

from django.http import Http404, HttpRequest, HttpResponse

from tests.handlers.differential.trace import describe, note
from tests.handlers.differential.urls import urlpatterns

__all__ = ("failed", "missing", "urlpatterns")


def missing(request: HttpRequest, exception: Exception) -> HttpResponse:
    note("handler", describe(exception))
    raise LookupError("of the handler")


def failed(request: HttpRequest) -> HttpResponse:
    note("handler500", describe(sys.exception()))
    raise Http404("of handler500")


handler400 = handler403 = handler404 = missing
handler500 = failed
