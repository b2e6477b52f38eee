"""The project that the programs serve: views that use the database, and ways to ask for them."""

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import django
import psycopg
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse
from django.urls import path

from django_asyncbridge.bridge.sync import pool_statistics, sync_to_async

django.setup()

from django.contrib.auth.models import User  # noqa: E402

from django_asyncbridge.asgi import get_asgi_application  # noqa: E402

CONNINFO = os.environ["TESTPROJECT_POSTGRES"]
created: list[threading.Thread] = []
connection_created.connect(
    lambda **_kwargs: created.append(threading.current_thread()), weak=False, dispatch_uid="test"
)
in_query = threading.Semaphore(0)


# --- Views -------------------------------------------------------------------------


def sync_query(request: HttpRequest) -> HttpResponse:
    """Ask for one thing."""
    return HttpResponse(str(User.objects.count()))


async def async_query(request: HttpRequest) -> HttpResponse:
    """Ask for one thing from async code."""
    return HttpResponse(str(await User.objects.acount()))


def sleep(request: HttpRequest) -> HttpResponse:
    """Have the server take its time."""
    with connection.cursor() as cursor:
        in_query.release()
        cursor.execute("SELECT pg_sleep(%s)", [request.GET.get("seconds", "0.2")])
    return HttpResponse("slept")


def leave_open(request: HttpRequest) -> HttpResponse:
    """Forget to leave a transaction."""
    transaction.atomic().__enter__()
    User.objects.create(username="left open")
    return HttpResponse("left open")


def leave_autocommit(request: HttpRequest) -> HttpResponse:
    """Forget to set autocommit again."""
    transaction.set_autocommit(False)
    User.objects.create(username="left open")
    return HttpResponse("left open")


async def elsewhere(request: HttpRequest) -> HttpResponse:
    """Ask in four other threads."""
    count = sync_to_async(User.objects.count, thread_sensitive=False)
    return HttpResponse(str(await asyncio.gather(count(), count(), count(), count())))


urlpatterns = [
    path("sync/", sync_query),
    path("async/", async_query),
    path("sleep/", sleep),
    path("leave-open/", leave_open),
    path("leave-autocommit/", leave_autocommit),
    path("elsewhere/", elsewhere),
]


# --- Asking ------------------------------------------------------------------------


class Answer:
    """What came back."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""


async def get(
    application: Callable[..., Awaitable[None]],
    address: str,
    gone: "asyncio.Event | None" = None,
) -> Answer:
    """Ask for a page; the client leaves when `gone` is set."""
    answer = Answer()
    path, _, query = address.partition("?")
    messages = iter([{"type": "http.request"}])

    async def receive() -> Any:
        for message in messages:
            return message
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answer.status = message.get("status", answer.status)
        answer.headers.update(message.get("headers", ()))
        answer.body += message.get("body", b"")

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
    }
    await application(scope, receive, send)
    return answer


async def get_many(
    application: Callable[..., Awaitable[None]], addresses: list[str], at_once: int
) -> list[int]:
    """Ask for pages, so many at once; return their statuses."""
    todo = iter(addresses)

    async def client() -> list[int]:
        return [(await get(application, address)).status for address in todo]

    statuses = await asyncio.gather(*(client() for _ in range(at_once)))
    return [status for some in statuses for status in some]


# --- Looking ------------------------------------------------------------------------


def connections_of_test() -> list[str]:
    """Return the state of every connection to the database but the one that asks."""
    with psycopg.connect(CONNINFO, autocommit=True) as own:
        return [
            row[0]
            for row in own.execute(
                "SELECT state FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        ]


def hang_up() -> None:
    """Have the server end every connection, as it does when it restarts, and wait until they have ended."""
    with psycopg.connect(CONNINFO, autocommit=True) as own:
        own.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    until(lambda: connections_of_test() == [])


def until(condition: Callable[[], bool]) -> None:
    """Wait until the server has come to see something."""
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the condition did not come true")


def request_workers() -> Any:
    """Return the statistics of the request threads."""
    return next(one for one in pool_statistics() if one.name == "request")


__all__ = (
    "User",
    "asyncio",
    "connections_of_test",
    "created",
    "get",
    "get_asgi_application",
    "get_many",
    "hang_up",
    "in_query",
    "request_workers",
    "threading",
    "until",
)
