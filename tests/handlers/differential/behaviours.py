"""What hooks and middleware do when it is their turn: one table for those before the view, one for those after it.

A behaviour is called with its label, the request, and what else the hook is given; what it returns the hook returns.

Which thread may touch what. Behaviours run wherever the handler runs hooks.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse

from tests.handlers.differential.errors import ERRORS, error_named
from tests.handlers.differential.replies import AsyncPage, Closing, Falsy, page, streaming
from tests.handlers.differential.trace import colour, describe, keep, note

__all__ = ("AFTER", "BEFORE", "BOTH", "Behaviour", "mark")

Behaviour = Callable[..., Any]
WAY = "X-Way"


def mark(label: str, response: Any) -> Any:
    """Leave a mark in a response's headers, and return it."""
    response.headers[WAY] = f"{response.headers.get(WAY, '')}<{label}"
    return response


# --- Before and after ----------------------------------------------------------------


def answers(label: str, request: HttpRequest, *_: object) -> HttpResponse:
    response = Closing(f"{label} answers", status=299)
    response.set_cookie("answered", label)
    return response


def answers_page(label: str, request: HttpRequest, *_: object) -> TemplateResponse:
    return page(request, f"of {label}")


def answers_async_page(label: str, request: HttpRequest, *_: object) -> TemplateResponse:
    return page(request, f"of {label}", AsyncPage)


def answers_falsy(label: str, request: HttpRequest, *_: object) -> HttpResponse:
    return Falsy(f"{label} answers")


def answers_zero(label: str, request: HttpRequest, *_: object) -> int:
    return 0


def answers_one(label: str, request: HttpRequest, *_: object) -> int:
    return 1


def answers_coroutine(label: str, request: HttpRequest, *_: object) -> Any:
    async def never() -> None: ...

    return keep(never())


def answers_404(label: str, request: HttpRequest, *_: object) -> HttpResponse:
    return HttpResponse(f"{label} does not know", status=404)


def streams(label: str, request: HttpRequest, *_: object) -> StreamingHttpResponse:
    return streaming(label, as_async=False)


def streams_async(label: str, request: HttpRequest, *_: object) -> StreamingHttpResponse:
    return streaming(label, as_async=True)


def raises(error: str) -> Behaviour:
    def behave(label: str, request: HttpRequest, *_: object) -> None:
        raise error_named(error)

    return behave


BOTH: dict[str, Behaviour] = {
    "answers": answers,
    "answers_page": answers_page,
    "answers_async_page": answers_async_page,
    "answers_falsy": answers_falsy,
    "answers_zero": answers_zero,
    "answers_one": answers_one,
    "answers_coroutine": answers_coroutine,
    "answers_404": answers_404,
    "streams": streams,
    "streams_async": streams_async,
    **{f"raises_{error}": raises(error) for error in ERRORS},
}


# --- Before -------------------------------------------------------------------------


def passes_on(label: str, request: HttpRequest, *_: object) -> None:
    return None


def reads_body(label: str, request: HttpRequest, *_: object) -> None:
    note(label, "read body", len(request.body))


def reads_form(label: str, request: HttpRequest, *_: object) -> None:
    note(label, "read form", dict(request.POST), sorted(request.FILES))


def reads_stream(label: str, request: HttpRequest, *_: object) -> None:
    note(label, "read stream", request.read(3), request.readline())


def sets_urlconf(label: str, request: HttpRequest, *_: object) -> None:
    request.urlconf = "tests.handlers.differential.urls_other"


def colours(label: str, request: HttpRequest, *_: object) -> None:
    colour.set(f"{colour.get()}+{label}")
    note(label, "colours")


def sets_encoding(label: str, request: HttpRequest, *_: object) -> None:
    request.encoding = "latin-1"


BEFORE: dict[str, Behaviour] = {
    "passes": passes_on,
    "reads_body": reads_body,
    "reads_form": reads_form,
    "reads_stream": reads_stream,
    "sets_urlconf": sets_urlconf,
    "colours": colours,
    "sets_encoding": sets_encoding,
    **BOTH,
}


# --- After --------------------------------------------------------------------------


def marks(label: str, request: HttpRequest, response: Any) -> Any:
    return mark(label, response)


def colours_after(label: str, request: HttpRequest, response: Any) -> Any:
    colours(label, request)
    return mark(label, response)


def answers_none(label: str, request: HttpRequest, response: Any) -> None:
    return None


def maps_content(label: str, request: HttpRequest, response: Any) -> Any:
    """Wrap streaming content as the documentation says, and shout other content."""
    if not response.streaming:
        with contextlib.suppress(AttributeError):
            response.content = response.content.upper()
    elif response.is_async:
        response.streaming_content = _shout_async(label, response.streaming_content)
    else:
        response.streaming_content = _shout(label, response.streaming_content)
    return mark(label, response)


def _shout(label: str, content: Any) -> Any:
    for chunk in content:
        note(label, "maps", len(chunk))
        yield chunk.upper()


async def _shout_async(label: str, content: Any) -> Any:
    async for chunk in content:
        note(label, "maps", len(chunk))
        yield chunk.upper()


def adds_context(label: str, request: HttpRequest, response: Any) -> Any:
    """Change what will be rendered, if something will be."""
    if getattr(response, "context_data", None) is not None:
        response.context_data["text"] += f" by {label}"
    return mark(label, response)


def looks_closely(label: str, request: HttpRequest, response: Any) -> Any:
    note(label, "sees", describe(response), response.streaming, sorted(response.cookies))
    return response


AFTER: dict[str, Behaviour] = {
    "passes": marks,
    "colours": colours_after,
    "answers_none": answers_none,
    "maps_content": maps_content,
    "adds_context": adds_context,
    "looks_closely": looks_closely,
    **BOTH,
}
