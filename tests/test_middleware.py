"""`ThreadSensitiveContextMiddleware`: a thread for each request, unless there is one."""

import asyncio
import contextvars
import threading
from collections.abc import Awaitable
from typing import Any, cast

import pytest
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.test import AsyncClient, override_settings
from django.urls import path

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import (
    ThreadSensitiveContext,
    async_to_sync,
    iscoroutinefunction,
    sync_to_async,
)
from django_asyncbridge.middleware import ThreadSensitiveContextMiddleware
from tests.bridge.pools import Busy
from tests.handlers.requests import request_of

thread_name = sync_to_async(lambda: threading.current_thread().name)


async def names_of_threads(request: HttpRequest) -> HttpResponse:
    """Answer with the threads of two calls."""
    return HttpResponse(f"{await thread_name()} {await thread_name()}")


def name_of_thread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(threading.current_thread().name)


urlpatterns = [path("async/", names_of_threads), path("sync/", name_of_thread)]


async def ask(times: int = 1) -> list[set[str]]:
    """Return the threads that requests through the middleware have used, at once."""
    middleware: Any = ThreadSensitiveContextMiddleware(names_of_threads)
    responses = await asyncio.gather(*(middleware(request_of("/page/")) for _ in range(times)))
    return [set(response.content.decode().split()) for response in responses]


def test_middleware_in_an_async_chain_is_a_coroutine_function_and_in_a_sync_one_is_not() -> None:
    assert iscoroutinefunction(ThreadSensitiveContextMiddleware(names_of_threads))
    assert not iscoroutinefunction(ThreadSensitiveContextMiddleware(name_of_thread))


def test_middleware_gives_requests_at_once_a_request_thread_each() -> None:
    (first,), (second,) = asyncio.run(ask(2))
    assert first != second
    assert {name.rpartition("-")[0] for name in (first, second)} == {"asyncbridge-request"}


def test_middleware_below_a_context_changes_nothing() -> None:
    async def main() -> None:
        async with ThreadSensitiveContext():
            home = await thread_name()
            assert await ask(2) == [{home}, {home}]

    asyncio.run(main())


def test_middleware_below_a_sync_caller_stays_in_its_thread() -> None:
    """So requests of a test client see the transaction of the test."""
    assert async_to_sync(ask)(2) == [{threading.current_thread().name}] * 2


def test_middleware_below_a_sync_caller_in_a_context_of_its_own_stays_in_its_thread() -> None:
    """A task started with an empty context does not say who waits; the loop does."""

    async def main() -> list[set[str]]:
        task = asyncio.get_running_loop().create_task(ask(), context=contextvars.Context())
        return await task

    assert async_to_sync(main)() == [{threading.current_thread().name}]


def test_middleware_in_a_sync_chain_passes_the_request_on() -> None:
    middleware = ThreadSensitiveContextMiddleware(name_of_thread)
    response = cast("HttpResponse", middleware(request_of("/page/")))
    assert response.content.decode() == threading.current_thread().name


def test_middleware_without_a_free_thread_answers_503_before_anything_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def never(request: HttpRequest) -> HttpResponse:
        raise AssertionError("the page was begun")

    async def main() -> HttpResponseBase:
        answer = ThreadSensitiveContextMiddleware(never)(request_of("/page/"))
        return await cast("Awaitable[HttpResponseBase]", answer)

    limits = {"MAX": 1, "WAIT_SECONDS": 0.01}
    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": limits}):
        busy = Busy(_state.request_workers)
        response = asyncio.run(main())
        busy.end()
        assert response.status_code == 503
        ((name,),) = asyncio.run(ask())
    assert name.startswith("asyncbridge-request-")
    assert "Service Unavailable: GET /page/: no worker" in caplog.text


@pytest.mark.urls(__name__)
@pytest.mark.parametrize("address", ["/async/", "/sync/"])
def test_middleware_in_a_project_is_served_by_the_test_client_in_the_thread_of_the_test(
    address: str,
) -> None:
    name = "django_asyncbridge.middleware.ThreadSensitiveContextMiddleware"

    async def main() -> str:
        return (await AsyncClient().get(address)).content.decode()

    with override_settings(MIDDLEWARE=[name]):
        assert set(async_to_sync(main)().split()) == {threading.current_thread().name}
        assert {name.rpartition("-")[0] for name in asyncio.run(main()).split()} == {
            "asyncbridge-request"
        }
