"""Small views: what they cost is mostly what is around them.

Which thread may touch what. The count of connections is changed in the threads that open them, one at a time.
"""

import threading

from django.contrib.auth.models import User
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse

from benchmarks.pages import AGETS, HELLO

__all__ = (
    "async_aget",
    "async_aget_10",
    "async_hello",
    "connections",
    "sync_hello",
    "sync_query",
)

_lock = threading.Lock()
_opened = 0


def sync_hello(request: HttpRequest) -> HttpResponse:
    """Answer without asking the database."""
    return HttpResponse(HELLO)


async def async_hello(request: HttpRequest) -> HttpResponse:
    """Answer without asking the database."""
    return HttpResponse(HELLO)


def sync_query(request: HttpRequest) -> HttpResponse:
    """Answer with one row."""
    return HttpResponse(User.objects.get(pk=1).username)


async def async_aget(request: HttpRequest) -> HttpResponse:
    """Answer with one row."""
    user = await User.objects.aget(pk=1)
    return HttpResponse(user.username)


async def async_aget_10(request: HttpRequest) -> HttpResponse:
    """Answer with ten rows, each asked for by itself."""
    users = [await User.objects.aget(pk=number) for number in range(1, AGETS + 1)]
    return HttpResponse(" ".join(user.username for user in users))


async def connections(request: HttpRequest) -> HttpResponse:
    """Answer how many database connections this process has opened so far."""
    return HttpResponse(str(_opened))


def _count(**_kwargs: object) -> None:
    global _opened
    with _lock:
        _opened += 1


connection_created.connect(_count)
