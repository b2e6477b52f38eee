"""A request from its scope to its end, with clients that leave and servers that fail: everything begun is ended, once."""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.urls import path
from django.utils.decorators import async_only_middleware, sync_only_middleware
from django.utils.deprecation import MiddlewareMixin

from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge.sync import ThreadSensitiveContext, sync_to_async
from django_asyncbridge.handlers import departure
from django_asyncbridge.handlers.asgi import ASGIHandler
from django_asyncbridge.safety import async_safe
from django_asyncbridge.testing import count_crossings
from tests.bridge import LIMIT_SECONDS
from tests.handlers.requests import get, scope

events: Counter[str] = Counter()


class Watched(HttpResponse):
    """A response that counts how often it was made and closed."""

    def __init__(self, content: Any = b"whole") -> None:
        super().__init__(content)
        watch(self)


class Stream(StreamingHttpResponse):
    """The same of a stream."""

    def __init__(self, content: Any) -> None:
        super().__init__(content)
        watch(self)


def watch(response: HttpResponseBase) -> None:
    events["made"] += 1
    response._resource_closers.append(lambda: events.update(["closed"]))  # type: ignore[attr-defined]


def sync_view(request: HttpRequest) -> HttpResponse:
    request.body  # noqa: B018  # as views do
    return Watched()


async def async_view(request: HttpRequest) -> HttpResponse:
    await asyncio.sleep(0)
    await sync_to_async(int)()
    return Watched()


def sync_stream(request: HttpRequest) -> HttpResponseBase:
    def parts() -> Iterator[bytes]:
        events["stream begun"] += 1
        try:
            yield from [b"one", b"two"]
        finally:
            events["stream ended"] += 1

    return Stream(parts())


async def async_stream(request: HttpRequest) -> HttpResponseBase:
    async def parts() -> AsyncIterator[bytes]:
        events["stream begun"] += 1
        try:
            for part in [b"one", b"two"]:
                await asyncio.sleep(0)
                yield part
        finally:
            events["stream ended"] += 1

    return Stream(parts())


async def for_ever(request: HttpRequest) -> HttpResponse:
    events["waits"] += 1
    await asyncio.wait_for(asyncio.Event().wait(), LIMIT_SECONDS)
    raise AssertionError


async def fail(request: HttpRequest) -> HttpResponseBase:
    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        raise OSError("the disk is gone")

    return Stream(parts())


def state(request: HttpRequest) -> HttpResponse:
    return HttpResponse(repr(request.state))  # type: ignore[attr-defined]


async def gone(request: HttpRequest) -> HttpResponse:
    return HttpResponse(status=410)


uploads: list[Any] = []


def take(request: HttpRequest) -> None:
    uploads.append(request.FILES["f"])


def upload(request: HttpRequest) -> HttpResponse:
    take(request)
    return Watched()


async def upload_and_leave(request: HttpRequest) -> HttpResponse:
    await sync_to_async(take)(request)
    raise asyncio.CancelledError


plain: list[HttpResponse] = []


view_threads: list[threading.Thread] = []


def plain_view(request: HttpRequest) -> HttpResponse:
    view_threads[:] = [threading.current_thread()]
    plain.append(HttpResponse("plain"))
    return plain[-1]


class View:
    """A view that is an object."""

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return Watched()


class OwnClose(HttpResponse):
    """Does something at its end."""

    def close(self) -> None:
        events["own close"] += 1
        super().close()


closing: list[Callable[[], object]] = []


def closes(request: HttpRequest) -> HttpResponse:
    view_threads[:] = [threading.current_thread()]
    response = HttpResponse("closes")
    response._resource_closers.append(closing.pop())  # type: ignore[attr-defined]
    return response


async def own_close(request: HttpRequest) -> HttpResponse:
    return OwnClose("own")


async def raise_error(request: HttpRequest) -> HttpResponse:
    raise ValueError("the view's")


urlpatterns = [
    path("gone/", gone),
    path("plain/", plain_view),
    path("object/", View()),
    path("upload/", upload),
    path("upload-and-leave/", upload_and_leave),
    path("own-close/", own_close),
    path("closes/", closes),
    path("raise/", raise_error),
    path("sync/", sync_view),
    path("async/", async_view),
    path("sync-stream/", sync_stream),
    path("async-stream/", async_stream),
    path("for-ever/", for_ever),
    path("fail/", fail),
    path("state/", state),
]


@async_only_middleware
def async_layer(get_response: Any) -> Any:
    async def middleware(request: HttpRequest) -> Any:
        await asyncio.sleep(0)
        response = await get_response(request)
        await asyncio.sleep(0)
        return response

    return middleware


@sync_only_middleware
def sync_layer(get_response: Any) -> Any:
    def middleware(request: HttpRequest) -> Any:
        return get_response(request)

    return middleware


pytestmark = pytest.mark.urls(__name__)
STACKS: tuple[list[str], ...] = ([], [f"{__name__}.async_layer"], [f"{__name__}.sync_layer"])


@pytest.fixture(autouse=True)
def signals_are_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def started(**_kwargs: Any) -> None:
        events["started"] += 1

    def finished(**_kwargs: Any) -> None:
        events["finished"] += 1

    events.clear()
    monkeypatch.setattr(departure, "_PATIENCE_SECONDS", 0.0)
    request_started.connect(async_safe(started))
    request_finished.connect(async_safe(finished))
    try:
        with override_settings(MIDDLEWARE=[]):
            yield
    finally:
        request_started.disconnect(started)
        request_finished.disconnect(finished)


def assert_everything_ended() -> None:
    assert events["started"] == events["finished"], events
    assert events["made"] == events["closed"], events
    assert events["stream begun"] == events["stream ended"], events


# --- Leaving -------------------------------------------------------------------------

EVERY_WAY = pytest.mark.parametrize(
    "address", ["/sync/", "/async/", "/object/", "/sync-stream/", "/async-stream/"]
)
EVERY_STACK = pytest.mark.parametrize("stack", STACKS, ids=["bare", "async", "sync"])
# More than a request takes, of the turns that it waits for its thread.
TURNS = (*range(40), *range(40, 400, 24))


@EVERY_WAY
@EVERY_STACK
def test_exchange_with_a_client_that_leaves_at_any_moment_ends_everything_once(
    address: str, stack: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main(turns: int) -> None:
        application = get_asgi_application()
        gone = asyncio.Event()
        asking = asyncio.create_task(get(application, address, gone))
        for _ in range(turns):
            await asyncio.sleep(0)
        gone.set()
        await asking

    with override_settings(MIDDLEWARE=stack):
        for turns in TURNS:
            events.clear()
            asyncio.run(main(turns))
            assert_everything_ended()
            assert events["started"] == 1
    assert [one for one in caplog.records if one.levelno > logging.INFO] == []


@EVERY_WAY
@EVERY_STACK
def test_exchange_that_is_cancelled_at_any_moment_ends_everything_once(
    address: str, stack: list[str]
) -> None:
    """By a server that stops, say; the task ends cancelled, or it had ended before."""

    async def main(turns: int) -> None:
        asking = asyncio.create_task(get(get_asgi_application(), address))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = asking.cancel()
        await asyncio.wait((asking,))
        assert asking.cancelled() or not cancelled or asking.result().status == 200

    with override_settings(MIDDLEWARE=stack):
        for turns in TURNS:
            events.clear()
            asyncio.run(main(turns))
            assert_everything_ended()


def test_exchange_whose_client_leaves_cancels_an_async_view(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        gone = asyncio.Event()
        asking = asyncio.create_task(get(get_asgi_application(), "/for-ever/", gone))
        while not events["waits"]:
            await asyncio.sleep(0)
        gone.set()
        assert (await asking).status == 0

    with caplog.at_level(logging.DEBUG, "django_asyncbridge.handlers"):
        asyncio.run(main())
    assert_everything_ended()
    assert [record.getMessage() for record in caplog.records] == [
        "the client has left: GET /for-ever/"
    ]


# --- Servers -------------------------------------------------------------------------


async def ask_with(address: str, send: Any) -> None:
    messages = iter([{"type": "http.request"}])

    async def receive() -> Any:
        message = next(messages, None)
        return message or await asyncio.Event().wait()

    await get_asgi_application()(scope(address), receive, send)


@EVERY_WAY
@pytest.mark.parametrize("before", range(4))
def test_exchange_with_a_server_whose_send_says_that_the_client_has_left(
    address: str, before: int, caplog: pytest.LogCaptureFixture
) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        if len(sent) == before:
            raise OSError("gone")
        sent.append(message)

    asyncio.run(ask_with(address, send))
    assert_everything_ended()
    assert caplog.records == []


def test_exchange_with_a_server_whose_send_is_broken_raises_that() -> None:
    async def send(message: Any) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(ask_with("/sync/", send))
    assert_everything_ended()


def test_exchange_with_content_that_fails_raises_that_so_that_the_server_cuts_the_answer() -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        asyncio.run(get(get_asgi_application(), "/fail/"))
    assert_everything_ended()


def test_exchange_with_a_receive_that_answers_its_cancellation_ends_everything() -> None:
    """C79: a server that swallowed the cancellation kept `request_finished` from being sent."""

    async def main() -> None:
        messages = iter([{"type": "http.request"}])
        done = asyncio.Event()

        async def receive() -> Any:
            for message in messages:
                return message
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            await asyncio.sleep(0)
            if not message.get("more_body", message["type"] == "http.response.start"):
                done.set()

        await get_asgi_application()(scope("/async-stream/"), receive, send)
        assert done.is_set()

    asyncio.run(main())
    assert_everything_ended()


def test_exchange_whose_client_leaves_during_the_body_has_not_begun() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def main() -> None:
        await get_asgi_application()(scope("/sync/"), receive, None)  # type: ignore[arg-type]

    asyncio.run(main())
    assert not events


# --- Requests ------------------------------------------------------------------------


def test_exchange_with_a_request_that_cannot_be_read_is_answered_400(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            sent.append(message)

        wrong = {**scope("/sync/"), "query_string": b"\xff"}
        await get_asgi_application()(wrong, receive, send)
        return sent

    start, _ = asyncio.run(main())
    assert start["status"] == 400
    assert_everything_ended()
    assert [record.getMessage() for record in caplog.records] == [
        "Bad Request (UnicodeDecodeError)"
    ]


def test_exchange_with_a_large_upload_and_no_request_closes_the_upload() -> None:
    # In two messages: it is not in memory then.
    part = {"type": "http.request", "body": b"x" * 3_000_000}
    messages = iter([{**part, "more_body": True}, part])
    wrong = {**scope("/sync/"), "query_string": b"\xff"}
    statuses: list[int] = []

    async def receive() -> Any:
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    asyncio.run(get_asgi_application()(wrong, receive, send))
    assert statuses == [400, 0]
    assert_everything_ended()


def test_exchange_whose_beginning_a_receiver_forbids_raises_that_and_ends() -> None:
    def forbid(**_kwargs: Any) -> None:
        raise ValueError("not now")

    request_started.connect(forbid)
    try:
        with pytest.raises(ValueError, match="not now"):
            asyncio.run(get(get_asgi_application(), "/sync/"))
    finally:
        request_started.disconnect(forbid)
    assert_everything_ended()


def test_exchange_has_the_state_of_the_lifespan_in_the_request() -> None:
    assert asyncio.run(get(get_asgi_application(), "/state/")).body == b"{}"


def test_exchange_sends_the_signals_as_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    senders: list[Any] = []

    def note(sender: Any, **_kwargs: Any) -> None:
        senders.append(sender)

    for signal in (request_started, request_finished):
        signal.connect(note)
    try:
        asyncio.run(get(get_asgi_application(), "/async/"))
    finally:
        for signal in (request_started, request_finished):
            signal.disconnect(note)
    assert senders == [ASGIHandler, ASGIHandler]


@pytest.mark.parametrize("address", ["/sync/", "/for-ever/"])
def test_exchange_awaits_async_receivers_of_both_signals(address: str) -> None:
    async def note(signal: Any, **_kwargs: Any) -> None:
        await asyncio.sleep(0)
        events["awaited"] += 1

    async def main() -> None:
        gone = asyncio.Event()
        asking = asyncio.create_task(get(get_asgi_application(), address, gone))
        while not events["waits"] and not asking.done():
            await asyncio.sleep(0)
        gone.set()
        await asking

    for signal in (request_started, request_finished):
        signal.connect(note)
    try:
        asyncio.run(main())
    finally:
        for signal in (request_started, request_finished):
            signal.disconnect(note)
    assert events["awaited"] == 2
    assert_everything_ended()


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_exchange_logs_an_error_status_once(level: int, caplog: pytest.LogCaptureFixture) -> None:
    application = get_asgi_application()
    with caplog.at_level(level, "django.request"):
        assert asyncio.run(get(application, "/nowhere/")).status == 404
    assert [record.getMessage() for record in caplog.records] == (
        ["Not Found: /nowhere/"] if level == logging.WARNING else []
    )


def test_exchange_with_a_view_that_answers_an_error_crosses_only_for_a_log_that_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Before the level is set: it sets up Django, and so its logging.
    application = get_asgi_application()
    with count_crossings() as crossings:
        assert asyncio.run(get(application, "/gone/")).status == 410
    assert (crossings.count, len(caplog.records)) == (1, 1)
    with caplog.at_level(logging.ERROR, "django.request"), count_crossings() as crossings:
        assert asyncio.run(get(application, "/gone/")).status == 410
    assert (crossings.count, len(caplog.records)) == (0, 1)


def uploading(address: str) -> Any:
    """Send more than is kept in memory, as a form."""
    body = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n%b\r\n--x--\r\n'
    body %= b"x" * 3_000_000
    where = scope(address)
    where["method"] = "POST"
    where["headers"] += [
        (b"content-type", b"multipart/form-data; boundary=x"),
        (b"content-length", str(len(body)).encode()),
    ]
    messages = iter([{"type": "http.request", "body": body}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(messages, None) or await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> Any:
        await get_asgi_application()(where, receive, send)
        return sent

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "status"), [("/upload/", 200), ("/async/", 200), ("/upload-and-leave/", None)]
)
def test_exchange_closes_uploads_in_a_thread(address: str, status: int | None) -> None:
    with pytest.raises(asyncio.CancelledError) if status is None else contextlib.nullcontext():
        assert uploading(address)[0]["status"] == status
    assert all(file.closed for file in uploads)
    assert_everything_ended()


def test_exchange_with_a_response_that_is_closed_in_a_way_of_its_own_closes_it_in_the_thread() -> (
    None
):
    asyncio.run(get(get_asgi_application(), "/own-close/"))
    assert events["own close"] == 1
    assert_everything_ended()


def test_exchange_without_any_receiver_is_served() -> None:
    before = request_started.receivers, request_finished.receivers
    request_started.receivers, request_finished.receivers = [], []
    try:
        assert asyncio.run(get(get_asgi_application(), "/async/")).status == 200
        asyncio.run(leaving("/for-ever/"))
    finally:
        request_started.receivers, request_finished.receivers = before


async def leaving(address: str) -> None:
    gone = asyncio.Event()
    asking = asyncio.create_task(get(get_asgi_application(), address, gone))
    while not events["waits"]:
        await asyncio.sleep(0)
    gone.set()
    await asking


def test_exchange_that_made_no_response_sends_its_end_from_the_thread_for_who_may_block() -> None:
    threads: list[str] = []

    def note(**_kwargs: Any) -> None:
        threads.append(threading.current_thread().name)

    request_finished.connect(note)
    try:
        asyncio.run(leaving("/for-ever/"))
    finally:
        request_finished.disconnect(note)
    (name,) = threads
    assert name.startswith("asyncbridge-request-")


# --- Sides of hooks for exceptions ------------------------------------------------------


class Asked(MiddlewareMixin):
    """Notes what exception is being handled."""

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        events[f"sync handles {sys.exc_info()[1] is exception}"] += 1


class AsyncAsked(MiddlewareMixin):
    """The same on the loop."""

    async def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        events[f"async handles {sys.exc_info()[1] is exception}"] += 1
        await asyncio.sleep(0)


def test_exchange_has_exception_hooks_run_while_the_exception_is_handled() -> None:
    names = [f"{__name__}.Asked", f"{__name__}.AsyncAsked"]
    with override_settings(MIDDLEWARE=names):
        assert asyncio.run(get(get_asgi_application(), "/raise/")).status == 500
    assert events["sync handles True"] == events["async handles True"] == 1


# --- Other scopes ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["websocket", "lifespan"])
def test_handler_serves_other_scopes(kind: str) -> None:
    incoming = {
        "websocket": ["websocket.connect"],
        "lifespan": ["lifespan.startup", "lifespan.shutdown"],
    }
    messages = iter(incoming[kind])
    sent: list[str] = []

    async def receive() -> Any:
        return {"type": next(messages)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    with override_settings(ASYNCBRIDGE={}):
        asyncio.run(get_asgi_application()({**scope("/"), "type": kind}, receive, send))
    complete = [f"{message}.complete" for message in incoming["lifespan"]]
    assert sent == (["websocket.close"] if kind == "websocket" else complete)


# --- The thread at the end of a request -------------------------------------------------


def test_exchange_looks_after_its_thread_in_the_last_call_that_is_expected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So the thread need not be woken for it: it is done before the response is sent, and not when the thread is given back."""
    order: list[str] = []
    _note_looks(order, monkeypatch)
    # A receiver of anybody else's would need the thread for the end.
    monkeypatch.setattr(request_finished, "receivers", django_s_own())

    async def send(message: Any) -> None:
        order.append(message["type"])

    asyncio.run(ask_with("/plain/", send))
    while lent_workers():  # pragma: no branch  # mostly it is back already
        time.sleep(0.001)  # pragma: no cover
    assert order == ["looked", "http.response.start", "http.response.body"]


def _note_looks(order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Notes when the thread of the view is looked after, from the view on.

    Other threads, and this one before, may still be looked after for a request of an earlier test.
    """
    view_threads.clear()

    def hook() -> None:
        if threading.current_thread() in view_threads:
            order.append("looked")

    monkeypatch.setattr(_state.request_workers, "_on_hand_over", hook)


def lent_workers() -> int:
    """How many request threads are with a request, or are being looked after."""
    statistics = _state.request_workers.statistics()
    return statistics.workers - statistics.idle


def test_exchange_whose_response_does_something_at_its_end_looks_after_the_thread_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may commit there what the view has begun."""
    order: list[str] = []
    _note_looks(order, monkeypatch)

    async def main() -> None:
        await get(get_asgi_application(), "/closes/")
        async with ThreadSensitiveContext():
            await sync_to_async(int)()

    closing.append(lambda: order.append("closed"))
    asyncio.run(main())
    assert order[:2] == ["closed", "looked"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), ValueError()])
def test_exchange_raises_what_ends_its_response_in_its_own_task(error: BaseException) -> None:
    """A server catches it there; in another task it would end the event loop."""

    def fail() -> None:
        raise error

    async def main() -> BaseException | None:
        try:
            await get(get_asgi_application(), "/closes/")
        except (SystemExit, KeyboardInterrupt) as raised:
            return raised
        return None

    closing.append(fail)
    # Django leaves out what is an Exception.
    assert asyncio.run(main()) is (None if isinstance(error, ValueError) else error)


@pytest.mark.parametrize("heard", [True, False])
def test_exchange_that_only_django_hears_of_ends_as_one_that_somebody_listens_to(
    heard: bool,
) -> None:
    async def main() -> None:
        before = request_finished.receivers
        if not heard:
            request_finished.receivers = django_s_own()
        try:
            assert (await get(get_asgi_application(), "/plain/")).status == 200
        finally:
            request_finished.receivers = before

    plain.clear()
    asyncio.run(main())
    (response,) = plain
    assert response.closed
    assert response._resource_closers == []  # type: ignore[attr-defined]


def django_s_own() -> list[Any]:
    """Return the entries of receivers that Django connects itself."""
    entries = request_finished.receivers
    return [one for one in entries if getattr(one[1](), "__module__", "").startswith("django.")]
