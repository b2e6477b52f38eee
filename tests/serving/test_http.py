"""`HTTPServer` in process: its ways to end, and what it needs."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator

import pytest
from django.dispatch import Signal

from django_asyncbridge.bridge.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django_asyncbridge.serving import http as serving_http
from django_asyncbridge.serving.address import Address, listen
from django_asyncbridge.serving.errors import ListenError, ServerNotInstalledError, StartupError
from django_asyncbridge.serving.http import HTTPServer
from django_asyncbridge.signals import server_started, server_stopping
from tests.serving.children import LIMIT_SECONDS
from tests.support import run_in_thread


async def refuse(_scope: Scope, _receive: ASGIReceiveCallable, _send: ASGISendCallable) -> None:
    """An application that answers nothing."""


def test_http_server_stopped_before_it_starts_ends_at_once_and_closes_its_socket() -> None:
    listener = listen(Address(port=0))
    server = HTTPServer(refuse, listener=listener)
    server.stop()
    server.run()
    assert listener.fileno() == -1


def test_http_server_that_has_served_raises_when_it_is_to_serve_again() -> None:
    server = HTTPServer(refuse, address=Address(port=0))
    server.stop()
    server.run()
    with pytest.raises(RuntimeError, match="make a new one"):
        server.run()


def test_http_server_that_could_not_listen_can_be_run_again() -> None:
    with listen(Address(port=0)) as taken:
        server = HTTPServer(refuse, address=Address.of(taken))
        with pytest.raises(ListenError):
            server.run()
        assert server.address is None
    server.stop()
    server.run()


def test_http_server_address_is_where_it_listens() -> None:
    with listen(Address(port=0)) as listener:
        assert HTTPServer(refuse, listener=listener).address == Address.of(listener)
    server = HTTPServer(refuse, address=Address("localhost", 0))
    seen = [server.address]
    server.stop()
    server.run()
    seen.append(server.address)
    assert seen[0] is None
    assert seen[1] is not None
    assert seen[1].host == "127.0.0.1"
    assert seen[1].port != 0


def test_http_server_in_another_thread_takes_no_signals_and_stops_when_told() -> None:
    server = HTTPServer(refuse, address=Address(port=0))
    before = signal.getsignal(signal.SIGTERM)
    server.stop()
    run_in_thread(server.run)
    assert signal.getsignal(signal.SIGTERM) is before


def test_http_server_puts_the_signal_handlers_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    server = HTTPServer(refuse)
    with server.stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
    assert {number: signal.getsignal(number) for number in before} == before


def test_http_server_without_uvicorn_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ServerNotInstalledError, match="pip install"):
        HTTPServer(refuse)


def test_event_loop_without_uvloop_is_asyncio_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert serving_http._event_loop_factory() is None


class Recorder:
    """An application that notes what happens to it; a request stays in flight until it is cancelled."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] == "lifespan":
            await self.lifespan(receive, send)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"<", "more_body": True})
            try:
                await asyncio.Event().wait()
            finally:
                self.seen.append("request ended")

    async def lifespan(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.seen.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})


def test_http_server_cancelled_cancels_requests_ends_the_lifespan_and_leaves_no_task() -> None:
    application = Recorder()
    listener = listen(Address(port=0))
    host, port = listener.getsockname()

    async def main() -> None:
        before = asyncio.all_tasks()
        serving = asyncio.ensure_future(HTTPServer(application, listener=listener).arun())
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b"<")
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        writer.close()
        assert asyncio.all_tasks() - before == set()

    asyncio.run(asyncio.wait_for(main(), LIMIT_SECONDS))
    assert application.seen == ["request ended", "shutdown"]
    assert listener.fileno() == -1


def test_http_server_cancelled_while_the_application_starts_does_not_wait_for_it() -> None:
    starting = asyncio.Event()

    async def application(_scope: Scope, _receive: object, _send: object) -> None:
        starting.set()
        await asyncio.Event().wait()

    async def main() -> None:
        server = HTTPServer(application, address=Address(port=0))
        serving = asyncio.ensure_future(server.arun())
        await starting.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    asyncio.run(asyncio.wait_for(main(), LIMIT_SECONDS))


def test_http_server_whose_application_fails_to_start_raises() -> None:
    async def application(
        _scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the cache is cold"})

    listener = listen(Address(port=0))
    with pytest.raises(StartupError, match="failed to start"):
        HTTPServer(application, listener=listener).run()
    assert listener.fileno() == -1


# --- What it tells -----------------------------------------------------------------


@contextlib.contextmanager
def told() -> Iterator[list[tuple[str, object]]]:
    """Give a list of the signals of servers and the addresses they tell."""
    log: list[tuple[str, object]] = []

    async def started(address: object, **_kwargs: object) -> None:
        log.append(("started", address))

    def stopping(address: object, **_kwargs: object) -> None:
        log.append(("stopping", address))

    def fail(**_kwargs: object) -> None:
        raise ValueError("no good")

    receivers: list[tuple[Signal, Callable[..., object]]] = [
        (server_started, started),
        (server_stopping, stopping),
    ]
    receivers += [(server_started, fail), (server_stopping, fail)]
    for one, receiver in receivers:
        one.connect(receiver)
    try:
        yield log
    finally:
        for one, receiver in receivers:
            one.disconnect(receiver)


def test_http_server_tells_its_begin_and_its_end_whatever_receivers_raise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = HTTPServer(refuse, address=Address(port=0))
    server.stop()
    with told() as log:
        server.run()
    assert log == [("started", server.address), ("stopping", server.address)]
    assert server.address is not None
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == [
        *["django.dispatch"] * 2
    ]


def test_http_server_that_fails_to_start_tells_nothing() -> None:
    async def fail(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no good"})

    with told() as log, pytest.raises(StartupError):
        HTTPServer(fail, address=Address(port=0)).run()
    assert log == []
