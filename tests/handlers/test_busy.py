"""`busy_response`: what a client and the log are told when no thread is free."""

import asyncio
import logging
import threading
from typing import Any

import pytest
from django.core.signals import request_started
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import async_only_middleware
from django.utils.deprecation import MiddlewareMixin

from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import WorkersBusy, sync_to_async
from django_asyncbridge.handlers.busy import busy_response, is_refusal
from tests.bridge.pools import Busy
from tests.handlers.requests import get


@pytest.mark.parametrize(
    ("wait_seconds", "retry_after"), [(10, "10"), (0.2, "1"), (2.5, "3"), (0, "1"), (None, "1")]
)
def test_busy_response_says_when_to_try_again(
    wait_seconds: float | None, retry_after: str, caplog: pytest.LogCaptureFixture
) -> None:
    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": {"WAIT_SECONDS": wait_seconds}}):
        response = busy_response("GET /slow/", WorkersBusy("all are lent: A for 3 s"))
    assert response.status_code == 503
    assert response["Retry-After"] == retry_after
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "django_asyncbridge.handlers")
    assert record.getMessage() == (
        "Service Unavailable: GET /slow/: all are lent: A for 3 s. "
        'ASYNCBRIDGE["REQUEST_THREADS"]["MAX"] is the maximum'
    )
    assert int(response["Content-Length"]) == len(response.content)


# --- In a request, behind middlewares of every shape ------------------------------------


@async_only_middleware
def around(get_response: Any) -> Any:
    async def awaited(request: HttpRequest) -> Any:
        response = await get_response(request)
        response["X-Around"] = "async"
        return response

    return awaited


class Hooks(MiddlewareMixin):
    """Needs the thread on the way out."""

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        raise AssertionError

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse:
        raise AssertionError


async def asks(request: HttpRequest) -> HttpResponse:
    await sync_to_async(int)()
    raise AssertionError


def hello(request: HttpRequest) -> HttpResponse:
    raise AssertionError


closed: list[str] = []


def note_thread() -> None:
    closed.append(threading.current_thread().name)


async def closes(request: HttpRequest) -> HttpResponse:
    response = HttpResponse("closes")
    response._resource_closers.append(note_thread)  # type: ignore[attr-defined]
    return response


async def streams(request: HttpRequest) -> StreamingHttpResponse:
    response = StreamingHttpResponse(iter([b"part"]))
    response._resource_closers.append(note_thread)  # type: ignore[attr-defined]
    return response


urlpatterns = [
    path("asks/", asks),
    path("hello/", hello),
    path("closes/", closes),
    path("streams/", streams),
]
AROUND, HOOKS = f"{__name__}.around", f"{__name__}.Hooks"


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("address", ["/asks/", "/hello/"])
@pytest.mark.parametrize(
    "middleware", [[], [HOOKS], [AROUND], [HOOKS, AROUND, HOOKS, AROUND, HOOKS]]
)
def test_request_without_a_thread_waits_once_and_is_answered_503_by_nobody_else(
    address: str, middleware: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> Any:
        application = get_asgi_application()
        pool = _state.request_workers
        busy, before = Busy(pool), pool.statistics().expired
        try:
            answer = await get(application, address)
        finally:
            busy.end()
        assert pool.statistics().expired == before + 1
        return answer

    limits = {"MAX": 1, "WAIT_SECONDS": 0.01}
    with override_settings(MIDDLEWARE=middleware, ASYNCBRIDGE={"REQUEST_THREADS": limits}):
        answer = asyncio.run(main())
    assert (answer.status, answer.body) == (503, b"Service Unavailable")
    assert answer.headers.get("x-around") == ("async" if AROUND in middleware else None)
    assert [record.name for record in caplog.records] == ["django_asyncbridge.handlers"]


@pytest.mark.urls(__name__)
@pytest.mark.parametrize(
    ("address", "middleware", "status"),
    [
        # Only its end may block: that happens in another thread.
        ("/closes/", [], 200),
        # What had been made is closed in the place of what is sent.
        ("/closes/", [HOOKS], 503),
        # A stream from the thread is refused while nothing of it has been sent.
        ("/streams/", [], 503),
        ("/streams/", [AROUND], 503),
    ],
)
def test_request_without_a_thread_is_closed(
    address: str, middleware: list[str], status: int
) -> None:
    async def main() -> Any:
        application = get_asgi_application()
        busy = Busy(_state.request_workers)
        try:
            return await get(application, address)
        finally:
            busy.end()

    closed.clear()
    limits = {"MAX": 1, "WAIT_SECONDS": 0.01}
    with override_settings(MIDDLEWARE=middleware, ASYNCBRIDGE={"REQUEST_THREADS": limits}):
        answer = asyncio.run(main())
    assert answer.status == status
    (name,) = closed
    assert not name.startswith("asyncbridge-request")
    assert name != "MainThread"


@pytest.mark.urls(__name__)
def test_stream_from_a_thread_that_is_free_is_sent() -> None:
    closed.clear()
    with override_settings(MIDDLEWARE=[], ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 1}}):
        answer = asyncio.run(get(get_asgi_application(), "/streams/"))
    assert (answer.status, answer.body) == (200, b"part")
    (name,) = closed
    assert name.startswith("asyncbridge-request")


@pytest.mark.urls(__name__)
def test_request_whose_beginning_finds_no_thread_is_refused() -> None:
    """A receiver of the project's may block, so it needs the thread before there is a request."""

    def receiver(**_kwargs: object) -> None:
        raise AssertionError

    async def main() -> Any:
        busy = Busy(_state.request_workers)
        try:
            return await get(get_asgi_application(), "/hello/")
        finally:
            busy.end()

    request_started.connect(receiver)
    limits = {"MAX": 1, "WAIT_SECONDS": 0.01}
    try:
        with override_settings(MIDDLEWARE=[], ASYNCBRIDGE={"REQUEST_THREADS": limits}):
            assert asyncio.run(main()).status == 503
    finally:
        request_started.disconnect(receiver)


def test_request_that_is_refused_by_another_pool_is_an_error_of_its_view() -> None:
    assert not is_refusal(WorkersBusy("of the view's own"))
    assert not is_refusal(None)
