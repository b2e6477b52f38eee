"""Responses that are more than their content: they note their rendering, their streaming, their closing.

Which thread may touch what. A response belongs to its request.
"""

import io
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.template.response import TemplateResponse

from tests.handlers.differential.errors import error_named
from tests.handlers.differential.trace import note, notebook

__all__ = (
    "AsyncPage",
    "Closing",
    "Falsy",
    "Page",
    "chunks",
    "chunks_async",
    "file",
    "page",
    "streaming",
)


class Falsy(HttpResponse):
    """A response that is not true."""

    def __bool__(self) -> bool:
        return False


class Closing(HttpResponse):
    """Notes that it is closed."""

    def close(self) -> None:
        note("response", "closes", self.status_code)
        super().close()
        note("response", "is closed")


class Page(TemplateResponse):
    """Notes that it is rendered."""

    def render(self) -> Any:
        note("response", "renders", self.is_rendered)
        return super().render()


class AsyncPage(TemplateResponse):
    """A template response whose rendering is async, and is not done by a thread."""

    async def render(self) -> Any:  # type: ignore[override]  # that is what this is for
        note("response", "renders async", self.is_rendered)
        given = self.context_data or {}
        self.content = f"async page: {given['text']}"
        if "fail" in given:
            raise given["fail"]
        return self


def page(
    request: HttpRequest,
    text: str,
    kind: type[TemplateResponse] = Page,
    error: str | None = None,
) -> TemplateResponse:
    """Return a template response, which raises an error when it is rendered if one is named."""
    if error is None:
        return kind(request, "page.html", {"text": text})
    failure = error_named(error)
    # Templates call what can be called.
    fail = failure if kind is AsyncPage else lambda: _raise(failure)
    return kind(request, "broken.html", {"text": text, "fail": fail})


def _raise(error: Exception) -> None:
    raise error


def chunks(label: str, error: str | None = None) -> Iterator[bytes]:
    """Return an iterator of three chunks, or one that raises at the third."""
    return _chunks(notebook(), label, error)


def _chunks(note_here: Callable[..., None], label: str, error: str | None) -> Iterator[bytes]:
    try:
        for number in range(3):
            note_here(label, "yields", number)
            if number == 2 and error:
                raise error_named(error)
            yield b"chunk %d;" % number
    finally:
        note_here(label, "generator ends")


def chunks_async(label: str, error: str | None = None) -> AsyncIterator[bytes]:
    """Return an async iterator of three chunks, or one that raises at the third."""
    return _async(chunks(label, error))


async def _async(content: Iterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in content:
        yield chunk


def streaming(label: str, as_async: bool, error: str | None = None) -> StreamingHttpResponse:
    """Return a streaming response."""
    make = chunks_async if as_async else chunks
    return StreamingHttpResponse(make(label, error))


def file(label: str) -> FileResponse:
    """Return a file as an attachment; it is closed with the response."""
    return FileResponse(_File(label), as_attachment=True, filename="numbers.txt")


class _File(io.BytesIO):
    def __init__(self, label: str) -> None:
        super().__init__(b"0123456789" * 20_000)
        self.label, self.note = label, notebook()

    def close(self) -> None:
        self.note(self.label, "file closes")
        super().close()
