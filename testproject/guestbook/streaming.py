"""Pages that arrive in pieces: the head of the page, then one line at a time, then the end."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

from django.conf import settings
from django.http import HttpRequest, StreamingHttpResponse
from django.template.loader import render_to_string
from django.views.decorators.http import require_safe

from django_asyncbridge import sync_to_async

LINES = 5
# The template holds this where the lines belong.
MARK = "<!-- lines -->"


@require_safe
def stream(request: HttpRequest) -> StreamingHttpResponse:
    """Send lines one at a time from a sync iterator."""
    head, foot = _page(request, "sync")
    return StreamingHttpResponse(_lines(head, foot))


@require_safe
async def async_stream(request: HttpRequest) -> StreamingHttpResponse:
    """Send lines one at a time from an async iterator."""
    head, foot = await sync_to_async(_page)(request, "async")
    return StreamingHttpResponse(_alines(head, foot))


def _page(request: HttpRequest, kind: str) -> tuple[str, str]:
    """Return what comes before the lines and what comes after them."""
    page = render_to_string("guestbook/stream.html", {"kind": kind, "mark": MARK}, request)
    head, _, foot = page.partition(MARK)
    return head, foot


def _lines(head: str, foot: str) -> Iterator[str]:
    yield head
    for number in range(1, LINES + 1):
        yield _line(number)
        time.sleep(settings.STREAM_DELAY_SECONDS)
    yield foot


async def _alines(head: str, foot: str) -> AsyncIterator[str]:
    yield head
    for number in range(1, LINES + 1):
        yield _line(number)
        await asyncio.sleep(settings.STREAM_DELAY_SECONDS)
    yield foot


def _line(number: int) -> str:
    return f"<li>Line {number} of {LINES}</li>\n"
