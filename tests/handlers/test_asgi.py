"""`ASGIHandler` and `get_asgi_application`: Django's handler, with threads of the bridge."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers import asgi as django_asgi
from django.core.signals import request_started
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import WorkersBusy, sync_to_async
from django_asyncbridge.handlers import departure
from django_asyncbridge.handlers.asgi import ASGIHandler
from tests.bridge import LIMIT_SECONDS, wait
from tests.bridge.pools import Busy
from tests.handlers.requests import get, scope
from tests.support import run_child


class Gate:
    """Where a view waits until it is let go."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Semaphore(0), threading.Event()


gate = Gate()


def name_of_thread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(threading.current_thread().name)


async def names_of_threads(request: HttpRequest) -> HttpResponse:
    names = [await sync_to_async(lambda: threading.current_thread().name)() for _ in range(3)]
    return HttpResponse(" ".join(names))


def stay(request: HttpRequest) -> HttpResponse:
    gate.reached.release()
    wait(gate.open)
    return HttpResponse("stayed")


async def fail_busy(request: HttpRequest) -> HttpResponse:
    raise WorkersBusy("of a pool of the view's own")


urlpatterns = [
    path("sync/", name_of_thread),
    path("async/", names_of_threads),
    path("stay/", stay),
    path("busy/", fail_busy),
]
pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    """Give each test a gate, and let go of whoever waits there at its end."""
    gate.__init__()  # type: ignore[misc]  # begin anew
    yield
    gate.open.set()


def test_get_asgi_application_is_a_handler_of_djangos_kind() -> None:
    application = get_asgi_application()
    assert type(application) is ASGIHandler
    assert isinstance(application, django_asgi.ASGIHandler)


def test_get_asgi_application_with_settings_that_are_wrong_names_them_all() -> None:
    wrong = {"REQUEST_THREAD": {}, "ACCELERATE_DJANGO": "yes"}
    with override_settings(ASYNCBRIDGE=wrong), pytest.raises(ImproperlyConfigured) as raised:
        get_asgi_application()
    assert "REQUEST_THREAD" in str(raised.value)
    assert "ACCELERATE_DJANGO" in str(raised.value)


@pytest.mark.parametrize("asks", ["get_asgi_application()", "aatomic()"])
def test_without_the_app_is_refused_since_transactions_would_be_lost(asks: str) -> None:
    child = run_child(
        """
        import asyncio, sys
        from django.conf import settings
        from django.core.exceptions import ImproperlyConfigured

        settings.configure(SECRET_KEY="a key", ROOT_URLCONF="none")
        from django_asyncbridge.asgi import get_asgi_application
        from django_asyncbridge.db import aatomic

        async def enter():
            async with aatomic():
                pass

        try:
            if sys.argv[1] == "aatomic()":
                import django
                django.setup()
                asyncio.run(enter())
            else:
                get_asgi_application()
        except ImproperlyConfigured as error:
            print(error)
        """,
        asks,
    )
    assert child.stdout.startswith(f"{asks} needs the app")
    assert child.stdout.endswith('add "django_asyncbridge" to INSTALLED_APPS\n')


@pytest.mark.parametrize("address", ["/sync/", "/async/"])
def test_handler_serves_each_request_in_one_request_thread_that_is_used_again(
    address: str,
) -> None:
    async def main() -> list[str]:
        application = get_asgi_application()
        answers = [await get(application, address) for _ in range(5)]
        assert {answer.status for answer in answers} == {200}
        return b" ".join(answer.body for answer in answers).decode().split()

    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 1}}):
        (name,) = set(asyncio.run(main()))
    assert name.startswith("asyncbridge-request-")


def test_handler_refuses_a_scope_of_a_type_that_it_does_not_know() -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="scope type 'mqtt' is not served"):
            await get_asgi_application()({**scope("/"), "type": "mqtt"}, None, None)  # type: ignore[arg-type]

    asyncio.run(main())


def test_handler_without_a_free_thread_answers_503_and_names_the_request_that_has_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        application = get_asgi_application()
        staying = asyncio.create_task(get(application, "/stay/"))
        assert await asyncio.to_thread(gate.reached.acquire, timeout=LIMIT_SECONDS)
        answer = await get(application, "/sync/")
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        gate.open.set()
        assert (await staying).body == b"stayed"
        assert (await get(application, "/sync/")).status == 200

    limits = {"MAX": 1, "WAIT_SECONDS": 0.01}
    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": limits}):
        asyncio.run(main())
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert message.startswith("Service Unavailable: GET /sync/: no worker of the pool 'request'")
    assert "to GET /stay/" in message


def test_handler_lets_a_view_fail_that_is_busy_with_threads_of_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = asyncio.run(get(get_asgi_application(), "/busy/"))
    assert answer.status == 500


def test_handler_gives_a_worker_back_when_the_client_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(departure, "_PATIENCE_SECONDS", 0.0)

    async def main() -> None:
        gone = asyncio.Event()
        leaving = asyncio.create_task(get(get_asgi_application(), "/stay/", gone))
        assert await asyncio.to_thread(gate.reached.acquire, timeout=LIMIT_SECONDS)
        gone.set()
        while not leaving.cancelling():
            await asyncio.sleep(0)
        gate.open.set()
        assert (await leaving).status == 0
        assert (await get(get_asgi_application(), "/sync/")).status == 200

    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 1}}):
        asyncio.run(main())


def test_handler_takes_the_limits_of_a_full_pool_for_requests_that_wait() -> None:
    """A call of somebody else's has the one thread; it is free again before the time is over."""

    async def main() -> None:
        busy = Busy(_state.request_workers)
        waiting = asyncio.create_task(get(get_asgi_application(), "/sync/"))
        while _state.request_workers.statistics().waiting == 0:
            await asyncio.sleep(0)
        busy.end()
        assert (await waiting).status == 200

    with override_settings(ASYNCBRIDGE={"REQUEST_THREADS": {"MAX": 1}}):
        asyncio.run(main())


def test_handler_sends_djangos_signals_with_its_own_class() -> None:
    senders: list[Any] = []

    def note(sender: Any, **_kwargs: Any) -> None:
        senders.append(sender)

    request_started.connect(note)
    try:
        asyncio.run(get(get_asgi_application(), "/sync/"))
    finally:
        request_started.disconnect(note)
    assert senders == [ASGIHandler]
