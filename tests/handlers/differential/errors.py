"""What hooks, middleware and views raise.

Which thread may touch what. The table does not change; each call makes a new error.
"""

from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import Http404, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.template import TemplateSyntaxError

__all__ = ("ERRORS", "error_named")

ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        Http404,
        PermissionDenied,
        SuspiciousOperation,
        RequestDataTooBig,
        BadRequest,
        MultiPartParserError,
        UnreadablePostError,
        TemplateSyntaxError,
        ValueError,
    )
}


def error_named(name: str) -> Exception:
    """Return a new error of a class of the table."""
    return ERRORS[name](f"a {name} on purpose")
