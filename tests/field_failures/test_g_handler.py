"""G: Django under ASGI, what the handler is about.

In full detail: C71 and C80 in `tests.handlers.test_answers`, C72 in `test_lifespan`, C76 in `test_body`, C79 in `test_departure`
and `test_exchange`, C47 between hooks in `test_runner` and `tests.handlers.differential`. C75, an upload that a view reads while it
comes, is not there: Django's request is made of a whole body.
"""

import asyncio
import contextlib
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar, Token
from typing import Any

import pytest
from django.core.signals import request_finished
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.deprecation import MiddlewareMixin

from django_asyncbridge.asgi import get_asgi_application
from tests.bridge import wait
from tests.handlers.requests import get, scope

variable: ContextVar[str] = ContextVar("variable", default="unset")
sent = threading.Event()
events: list[str] = []


def lines(request: HttpRequest) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield b"one"
        # Goes on only when the client has the first.
        wait(sent)
        yield b"two"

    return StreamingHttpResponse(parts())


async def async_lines(request: HttpRequest) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        try:
            for _ in range(100):
                yield b"part"
        finally:
            events.append("closed")

    return StreamingHttpResponse(parts())


def value(request: HttpRequest) -> HttpResponse:
    return HttpResponse(variable.get())


async def state(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.state["pool"])  # type: ignore[attr-defined]


urlpatterns = [
    path("lines/", lines),
    path("async-lines/", async_lines),
    path("value/", value),
    path("state/", state),
]


class Tokens(MiddlewareMixin):
    """Sets a variable on the way in and resets it on the way out, as tracing does."""

    def process_request(self, request: Any) -> None:
        request.token = variable.set("set")

    def process_response(self, request: Any, response: HttpResponse) -> HttpResponse:
        token: Token[str] = request.token
        variable.reset(token)
        events.append(variable.get())
        return response


@contextlib.asynccontextmanager
async def lifespan() -> AsyncIterator[dict[str, str]]:
    """Open something, and close it with the server."""
    yield {"pool": "open"}
    events.append("pool closed")


@pytest.fixture(autouse=True)
def site() -> Iterator[None]:
    sent.clear()
    events.clear()
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[]):
        yield


def test_c47_token_of_process_request_is_reset_in_process_response() -> None:
    with override_settings(MIDDLEWARE=[f"{__name__}.Tokens"]):
        assert asyncio.run(get(get_asgi_application(), "/value/")).body == b"set"
    assert events == ["unset"]


def test_c71_sync_generator_is_sent_as_it_is_made() -> None:
    """It was collected first, with a warning: here it would wait for ever."""
    bodies: list[bytes] = []
    messages = iter([{"type": "http.request"}])

    async def receive() -> Any:
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        bodies.append(message.get("body", b""))
        if bodies[-1] == b"one":
            sent.set()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(get_asgi_application()(scope("/lines/"), receive, send))
    assert b"".join(bodies) == b"onetwo"


def test_c72_lifespan_opens_and_closes_with_the_server() -> None:
    async def main() -> bytes:
        application = get_asgi_application()
        incoming: asyncio.Queue[Any] = asyncio.Queue()
        outgoing: asyncio.Queue[Any] = asyncio.Queue()
        lifetime: dict[str, Any] = {"type": "lifespan", "state": {}}
        running = asyncio.create_task(application(lifetime, incoming.get, outgoing.put))
        incoming.put_nowait({"type": "lifespan.startup"})
        assert await outgoing.get() == {"type": "lifespan.startup.complete"}
        # As a server does it for each request.
        page = await get(
            lambda where, *rest: application({**where, "state": {**lifetime["state"]}}, *rest),
            "/state/",
        )
        incoming.put_nowait({"type": "lifespan.shutdown"})
        await running
        return page.body

    with override_settings(ASYNCBRIDGE={"LIFESPAN": f"{__name__}.lifespan"}):
        assert asyncio.run(main()) == b"open"
    assert events == ["pool closed"]


def test_c79_request_ends_whatever_receive_does_when_it_is_cancelled() -> None:
    def finished(**_kwargs: Any) -> None:
        events.append("finished")

    messages = iter([{"type": "http.request"}])

    async def receive() -> Any:
        message = next(messages, None)
        try:
            return message or await asyncio.Event().wait()
        except asyncio.CancelledError:
            return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        # Long enough for somebody to wait in `receive`.
        await asyncio.sleep(0.002)

    request_finished.connect(finished)
    try:
        asyncio.run(get_asgi_application()(scope("/async-lines/"), receive, send))
    finally:
        request_finished.disconnect(finished)
    assert events == ["closed", "finished"]


def test_c80_async_generator_is_closed_when_the_client_leaves() -> None:
    async def send(message: Any) -> None:
        if message.get("body"):
            raise OSError("gone")

    async def receive() -> Any:
        return {"type": "http.request"}

    async def main() -> list[str]:
        await get_asgi_application()(scope("/async-lines/"), receive, send)
        # At once, not when the loop ends.
        return list(events)

    assert asyncio.run(main()) == ["closed"]
