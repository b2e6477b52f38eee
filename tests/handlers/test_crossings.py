"""How often a request crosses between event loop and thread: the figures this handler exists for."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.signals import request_finished, request_started
from django.http import FileResponse, HttpRequest, HttpResponse
from django.template import Context, Template
from django.test import override_settings
from django.urls import path
from django.utils.decorators import sync_only_middleware

from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, sync_to_async
from django_asyncbridge.testing import Crossings, count_crossings
from tests.db_support import close_connections
from tests.handlers.requests import Answer, get

STARTPROJECT = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


async def ahello(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello")


async def atouch(request: HttpRequest) -> HttpResponse:
    await request.session.aset("visits", 1)
    return HttpResponse("touched")


async def aget_ten(request: HttpRequest) -> HttpResponse:
    names = [(await User.objects.aget(username="guest")).username for _ in range(10)]
    return HttpResponse(" ".join(names))


def query(request: HttpRequest) -> HttpResponse:
    return HttpResponse(User.objects.get(username="guest").username)


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(Template("{{ 7 }}").render(Context()))


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(Path(__file__).open("rb"))


async def afail(request: HttpRequest) -> HttpResponse:
    raise ValueError("the view's")


@sync_only_middleware
def sync_only(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    return middleware


urlpatterns = [
    path("hello/", hello),
    path("ahello/", ahello),
    path("atouch/", atouch),
    path("aget-ten/", aget_ten),
    path("query/", query),
    path("page/", page),
    path("file/", file),
    path("afail/", afail),
]
pytestmark = pytest.mark.urls(__name__)


def ask(address: str, middleware: list[str] = STARTPROJECT) -> tuple[Answer, Crossings]:
    async def main() -> tuple[Answer, Crossings]:
        application = get_asgi_application()
        async with ThreadSensitiveContext():
            with count_crossings() as crossings:
                answer = await get(application, address)
            # A test's database must not be left to the requests of the next.
            await sync_to_async(close_connections)()
        return answer, crossings

    with override_settings(MIDDLEWARE=middleware, ALLOWED_HOSTS=["*"], DEBUG=False):
        return asyncio.run(main())


IN_THE_MIDDLE = [*STARTPROJECT[:3], f"{__name__}.sync_only", *STARTPROJECT[3:]]


@pytest.mark.parametrize(
    ("address", "middleware", "crossings"),
    [
        ("/hello/", STARTPROJECT, 1),
        ("/ahello/", STARTPROJECT, 0),
        ("/page/", STARTPROJECT, 1),
        # A sync middleware holds its thread: inside of it, sync code needs no crossing.
        ("/hello/", IN_THE_MIDDLE, 1),
        ("/ahello/", IN_THE_MIDDLE, 2),
        # The error page may do anything, and so may who is told of it.
        ("/missing/", STARTPROJECT, 1),
        # Somebody has to read the file and to close it: the view, the first block, what may follow, the end.
        ("/file/", STARTPROJECT, 4),
    ],
)
def test_request_crosses(address: str, middleware: list[str], crossings: int) -> None:
    answer, counted = ask(address, middleware)
    assert answer.status == (404 if address == "/missing/" else 200)
    assert counted.count == crossings, counted


def test_request_whose_async_view_fails_crosses_for_the_error_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer, counted = ask("/afail/")
    assert answer.status == 500
    assert counted.count == 1, counted
    assert [record.getMessage() for record in caplog.records] == ["Internal Server Error: /afail/"]


def test_request_names_what_each_crossing_was_made_for() -> None:
    assert repr(ask("/hello/")[1]) == "<Crossings: 1 (hello)>"
    assert repr(ask("/ahello/", IN_THE_MIDDLE)[1]) == (
        "<Crossings: 2 (ahello, sync_only.<locals>.middleware)>"
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("address", "crossings"), [("/query/", 1), ("/atouch/", 1), ("/aget-ten/", 10)]
)
def test_request_with_queries_crosses(address: str, crossings: int) -> None:
    User.objects.create(username="guest")
    answer, counted = ask(address)
    assert answer.status == 200
    assert counted.count == crossings, counted


@pytest.mark.parametrize("signal", [request_started, request_finished])
def test_request_with_a_receiver_of_the_projects_crosses_for_it(signal: Any) -> None:
    """Sync receivers may block; of a sync view the first is on its way to the thread anyway."""
    calls: list[str] = []

    def note(**_kwargs: Any) -> None:
        calls.append("called")

    signal.connect(note)
    try:
        assert ask("/ahello/")[1].count == 1
        assert ask("/hello/")[1].count == (1 if signal is request_started else 2)
    finally:
        signal.disconnect(note)
    assert len(calls) == 2
