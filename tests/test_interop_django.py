"""What Django itself does through asgiref, on our code: ORM, signals, cache, sessions, messages, the active language."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import asgiref.sync
import pytest
from django.contrib.auth.models import User
from django.contrib.messages import get_messages, success
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.backends.cache import SessionStore
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.handlers.asgi import ASGIHandler
from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory
from django.utils import translation

from django_asyncbridge import interop
from django_asyncbridge.bridge import sync


@pytest.fixture(autouse=True)
def accelerated() -> Iterator[None]:
    """Have Django run on ours, and leave what the app has installed as it was."""
    before = bool(interop._acceleration)
    interop.accelerate()
    yield
    interop.uninstall()
    interop.install(before)


@pytest.fixture
def functions() -> Iterator[list[str]]:
    """Collect the names of what has crossed."""
    seen: list[str] = []

    def note(crossing: sync.Crossing) -> None:
        function: Any = crossing.function
        seen.append(getattr(function, "__qualname__", type(function).__name__))

    sync.add_observer(note)
    yield seen
    sync.remove_observer(note)


@pytest.mark.django_db
def test_query_crosses_once_in_the_callers_thread(functions: list[str]) -> None:
    User.objects.create(username="ada")

    async def get() -> str:
        return (await User.objects.aget(username="ada")).username

    assert sync.async_to_sync(get)() == "ada"
    assert functions[0] == "QuerySet.get"
    assert len(functions) == 2


@pytest.mark.parametrize("in_context", [False, True])
def test_signal_sent_in_async_code_calls_sync_receivers_in_the_home_thread(
    in_context: bool, functions: list[str]
) -> None:
    signal = Signal()
    idents: list[int] = []
    languages: list[str | None] = []

    def receiver(**kwargs: object) -> None:
        idents.append(threading.get_ident())
        languages.append(translation.get_language())

    async def areceiver(**kwargs: object) -> None:
        languages.append(translation.get_language())
        idents.append(await asgiref.sync.sync_to_async(threading.get_ident)())

    signal.connect(receiver)
    signal.connect(areceiver)

    async def send() -> None:
        translation.activate("de")
        await signal.asend(sender=None)
        # From sync code, the other way.
        await sync.sync_to_async(signal.send)(sender=None)
        idents.append(await sync.sync_to_async(threading.get_ident)())

    async def main() -> None:
        if not in_context:
            await send()
            return
        async with sync.ThreadSensitiveContext():
            await send()

    with translation.override("en"):
        asyncio.run(main())
    assert len(idents) == 5
    assert len({*idents}) == 1
    assert languages == ["de"] * 4
    assert any("asend" in name for name in functions)


def test_cache_crosses_for_each_of_its_methods(functions: list[str]) -> None:
    cache: BaseCache = LocMemCache("interop", {})

    async def main() -> None:
        await cache.aset("key", 1)
        assert await cache.aget("key") == 1

    asyncio.run(main())
    assert functions == ["LocMemCache.set", "LocMemCache.get"]


def test_session_crosses_and_keeps_what_is_set(functions: list[str]) -> None:
    async def main() -> None:
        session = SessionStore()
        await session.aset("key", "value")
        await session.asave()
        assert session.session_key is not None
        again = SessionStore(session.session_key)
        assert await again.aget("key") == "value"
        await again.aflush()

    asyncio.run(main())
    assert functions


def test_messages_added_on_either_side_of_a_crossing_are_all_there() -> None:
    @sync.sync_to_async
    def add_in_thread(request: HttpRequest) -> None:
        success(request, "in a thread")
        asgiref.sync.async_to_sync(aadd)(request, "on the loop, from a thread")

    async def aadd(request: HttpRequest, text: str) -> None:
        success(request, text)

    async def view(request: HttpRequest) -> HttpResponse:
        await aadd(request, "on the loop")
        await add_in_thread(request)
        return HttpResponse("; ".join(str(message) for message in get_messages(request)))

    async def main() -> str:
        request = RequestFactory().get("/")
        request.session = SessionStore()
        middleware: Any = MessageMiddleware(view)
        response: HttpResponse = await middleware(request)
        return response.content.decode()

    assert asyncio.run(main()) == "on the loop; in a thread; on the loop, from a thread"


@pytest.mark.parametrize("accelerate", [False, True])
def test_handler_of_djangos_answers_on_ours_and_on_asgirefs(
    accelerate: bool, functions: list[str]
) -> None:
    """It has imported asgiref's context by name; each request has one."""
    interop.install(accelerate)
    sent: list[dict[str, Any]] = []
    idle = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if sent or idle.is_set():
            await asyncio.Event().wait()
        idle.set()
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    scope: Any = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/no-such-page/",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }

    async def main() -> None:
        handler = ASGIHandler()
        handler.load_middleware(is_async=True)
        for _ in range(3):
            idle.clear()
            sent.clear()
            await handler(scope, receive, send)
            assert sent[0]["status"] == 404

    asyncio.run(main())
    assert bool(functions) is accelerate
