"""``ATOMIC_REQUESTS`` for async views, with each of Django's handlers."""

import pytest
from django.contrib.auth.models import User
from django.core.handlers.base import BaseHandler
from django.db import connection, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client
from django.urls import path

from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from django_asyncbridge.handlers import atomic_requests
from tests.db_support import names
from tests.handlers.requests import get


async def tell(request: HttpRequest) -> HttpResponse:
    """Say whether the view is in a transaction."""
    inside = await sync_to_async(lambda: connection.in_atomic_block)()
    return HttpResponse(str(inside))


@transaction.non_atomic_requests
async def exempt(request: HttpRequest) -> HttpResponse:
    return await tell(request)


async def fail(request: HttpRequest) -> HttpResponse:
    await User.objects.acreate(username="to be rolled back")
    raise ValueError("no good")


def tell_sync(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(connection.in_atomic_block))


urlpatterns = [
    path("tell/", tell),
    path("exempt/", exempt),
    path("fail/", fail),
    path("sync/", tell_sync),
]
pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def atomic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have requests run in a transaction."""
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)


PAGES = [("/tell/", b"True"), ("/sync/", b"True")]


@pytest.mark.parametrize(("address", "body"), PAGES)
def test_atomic_requests_by_the_async_client(address: str, body: bytes) -> None:
    assert async_to_sync(AsyncClient().get)(address).content == body


@pytest.mark.parametrize(("address", "body"), PAGES)
def test_atomic_requests_by_the_sync_client(address: str, body: bytes) -> None:
    assert Client().get(address).content == body


@pytest.mark.parametrize(("address", "body"), PAGES)
def test_atomic_requests_by_our_handler(address: str, body: bytes) -> None:
    async def main() -> bytes:
        return (await get(get_asgi_application(), address)).body

    assert async_to_sync(main)() == body


def test_atomic_requests_roll_back_an_async_view_that_fails() -> None:
    client = AsyncClient(raise_request_exception=False)
    assert async_to_sync(client.get)("/fail/").status_code == 500
    assert names() == []


def test_atomic_requests_leave_out_a_view_that_is_exempt() -> None:
    assert async_to_sync(AsyncClient().get)("/exempt/").content == b"False"


def test_atomic_requests_uninstalled_are_refused_by_django_again() -> None:
    atomic_requests.uninstall()
    try:
        with pytest.raises(RuntimeError, match="ATOMIC_REQUESTS"):
            async_to_sync(AsyncClient().get)("/tell/")
    finally:
        atomic_requests.install()
    assert BaseHandler.make_view_atomic is atomic_requests._make_view_atomic
