"""Requests and WebSockets as application instances of `HTTPServer`: listed, bounded, reported, let go in order."""

import asyncio
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from django_asyncbridge.bridge.sync import ThreadSensitiveContext, sync_to_async
from django_asyncbridge.serving import _too_many
from django_asyncbridge.serving.address import Address, listen, listen_unix
from django_asyncbridge.serving.http import HTTPServer
from django_asyncbridge.serving.in_flight import InFlight, describe, record_of, request_line
from tests.serving.children import LIMIT_SECONDS
from tests.serving.in_process import Served, everything, get, serving


class Gate:
    """An application whose requests to /wait/ are in flight until the gate is opened; it echoes the body's length."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.waiting = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
        if scope["path"] == "/wait/":
            try:
                await self._wait()
            except asyncio.CancelledError:
                self.cancelled.release()
                raise
        if scope["path"].startswith("/fail/"):
            raise LookupError("what the view looked for")
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": scope["path"].encode()})
        else:
            await send({"type": "websocket.close"})

    async def _wait(self) -> None:
        self.waiting.release()
        while not self.open.is_set():
            await asyncio.sleep(0.001)

    def wait(self) -> None:
        assert self.waiting.acquire(timeout=LIMIT_SECONDS)


async def on_loop(served: Served, function: Callable[[], Any]) -> Any:
    return function()


def call(served: Served, function: Callable[[], Any]) -> Any:
    """Call a function on the loop's thread of a server that answers at least one request."""
    (details, *_) = served.server.application_instances.values()
    loop = details["future"].get_loop()
    return asyncio.run_coroutine_threadsafe(on_loop(served, function), loop).result(LIMIT_SECONDS)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


def websocket(served: Served, path: str) -> Any:
    host, port = served.server.address.host, served.server.address.port  # type: ignore[union-attr]
    return connect(f"ws://{host}:{port}{path}", proxy=None)


def until_answered(client: socket.socket) -> None:
    """Return when a response has come to its end, on a connection that stays open."""
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        received += client.recv(65536)


# --- In flight -------------------------------------------------------------------------


def test_in_flight_lists_requests_and_websockets_the_longest_first(gate: Gate) -> None:
    with serving(gate) as served, served.connect() as client:
        client.sendall(get("/wait/?q=1"))
        gate.wait()
        with websocket(served, "/wait/"):
            gate.wait()
            first, second = call(served, served.server.in_flight)
            gate.open.set()
        assert (first.kind, first.method, first.path) == ("http", "GET", "/wait/")
        assert (second.kind, second.method, second.path) == ("websocket", "", "/wait/")
        assert first.seconds >= second.seconds >= 0
        assert first.client == client.getsockname()
        assert first.thread is None
        assert everything(client).endswith(b"/wait/\r\n0\r\n\r\n")
        assert served.server.application_instances == {}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="contexts of tasks can be read from 3.12 on")
def test_in_flight_names_the_request_thread_that_a_request_has(gate: Gate) -> None:
    names: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        async with ThreadSensitiveContext():
            names.append(await sync_to_async(lambda: threading.current_thread().name)())
            await gate(scope, receive, send)

    with serving(application, lifespan="off") as served, served.connect() as client:
        client.sendall(get("/wait/"))
        gate.wait()
        (record,) = call(served, served.server.in_flight)
        gate.open.set()
        everything(client)
    assert [record.thread] == names


def test_record_of_a_client_without_an_address_has_none() -> None:
    async def main() -> InFlight:
        scope = {"type": "http", "method": "GET", "path": "/", "client": None}
        future = asyncio.current_task()
        # The clock of the system may have been put back meanwhile.
        return record_of({"scope": scope, "future": future, "last_used": 1e12})

    record = asyncio.run(main())
    assert record.client is None
    assert record.seconds == 0


def test_path_of_a_client_makes_no_line_of_a_log(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    assert request_line({"path": "/a\nERROR"}) == "WebSocket /a%0AERROR"
    with serving(gate) as served:
        served.ask(get("/fail/%0AERROR:%20all%20is%20lost"))
    assert not [record for record in caplog.records if "\n" in record.getMessage()]


def test_describe_names_the_eldest_and_counts_the_others() -> None:
    async def main() -> list[InFlight]:
        task: Any = asyncio.current_task()
        paths = [f"/{number}/" for number in range(10)]
        records = [
            InFlight("http", "GET", path, None, float(path.strip("/")), None, task)
            for path in paths
        ]
        return [
            *records,
            InFlight("websocket", "", "/ws/", None, 99, "asyncbridge-request-7", task),
        ]

    text = describe(asyncio.run(main()))
    assert text.startswith("WebSocket /ws/ (99.0 s, asyncbridge-request-7), GET /9/ (9.0 s), ")
    assert text.endswith("GET /3/ (3.0 s) and 3 more")


def test_deleted_instance_is_cancelled_and_its_client_sees_the_end(gate: Gate) -> None:
    with serving(gate) as served, served.connect() as client:
        client.sendall(get("/wait/"))
        gate.wait()
        call(served, served.server.delete_oldest_application_instance)
        assert gate.cancelled.acquire(timeout=LIMIT_SECONDS)
        assert b"200 OK" not in everything(client)


def test_description_of_a_task_is_its_request(gate: Gate) -> None:
    with serving(gate) as served, served.connect() as client:
        client.sendall(get("/wait/"))
        gate.wait()
        (record,) = call(served, served.server.in_flight)
        assert served.server._describe_task(record.task) == "GET /wait/"
        gate.open.set()
        everything(client)
        assert served.server._describe_task(record.task) is None


# --- Too many --------------------------------------------------------------------------


def test_requests_beyond_the_limit_are_answered_503_and_nothing_that_runs_is_ended(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(gate, 1) as served, served.connect() as client:
        client.sendall(get("/wait/"))
        gate.wait()
        answers = [served.ask(get("/")) for _ in range(3)]
        with pytest.raises(InvalidStatus, match="403"):
            websocket(served, "/")
        gate.open.set()
        assert everything(client).startswith(b"HTTP/1.1 200 OK")
        assert served.ask(get("/")).startswith(b"HTTP/1.1 200 OK")
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable")
        assert b"\r\nretry-after: 1\r\n" in answer
    assert len([one for one in caplog.records if "refused with 503" in one.message]) == 1


def test_refusals_are_logged_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def nothing(*_args: Any) -> None:
        pass

    def refuse() -> None:
        asyncio.run(too_many.refuse({"type": "http"}, nothing, nothing))

    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    too_many = _too_many.TooMany(5)
    refuse()
    refuse()
    now += _too_many._LOG_SECONDS
    refuse()
    assert [record.message for record in caplog.records] == [
        "1 refused with 503: there are 5 requests already, the limit",
        "2 refused with 503: there are 5 requests already, the limit",
    ]


# --- Failures --------------------------------------------------------------------------


def test_application_that_raises_is_logged_once_with_its_request_and_answered_500(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(gate) as served:
        assert served.ask(get("/fail/?q=1")).startswith(b"HTTP/1.1 500 Internal Server Error")
        with websocket(served, "/fail/"):
            pass
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.message for record in errors] == [
        "GET /fail/ failed in the application: LookupError('what the view looked for')",
        "WebSocket /fail/ failed in the application: LookupError('what the view looked for')",
    ]
    assert all(record.exc_info for record in errors)


def test_application_exception_can_be_overridden_and_may_fail_itself(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[tuple[str, str]] = []

    class Telling(HTTPServer):
        async def application_exception(
            self, exception: BaseException, application_details: dict[str, Any]
        ) -> None:
            heard.append((str(exception), application_details["scope"]["path"]))
            raise ValueError("no more paper")

    with serving(gate, server_class=Telling) as served:
        assert served.ask(get("/fail/")).startswith(b"HTTP/1.1 500")
    assert heard == [("what the view looked for", "/fail/")]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert ["failed to report" in record.message for record in errors] == [True]


# --- The end ----------------------------------------------------------------------------


def test_stop_names_what_is_in_flight_and_lets_it_finish(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(gate) as served, served.connect() as client:
        client.sendall(get("/wait/", connection="keep-alive"))
        gate.wait()
        served.server.stop()
        while "Still answering: GET /wait/" not in caplog.text:
            threading.Event().wait(0.005)
        gate.open.set()
        answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_stop_answers_the_request_that_an_idle_connection_sends_then(
    gate: Gate, before: int, http: str
) -> None:
    """The client cannot know that the server is about to close."""
    with (
        serving(gate, http=http, idle_grace_seconds=LIMIT_SECONDS) as served,
        served.connect() as client,
        served.connect() as other,
    ):
        # The server knows of the connection when it has answered on one that came later.
        for _ in range(before):
            client.sendall(get("/", connection="keep-alive"))
            until_answered(client)
        other.sendall(get("/"))
        everything(other)
        served.server.stop()
        while not served.server._draining:
            threading.Event().wait(0.005)
        client.sendall(get("/", connection="keep-alive"))
        answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"\r\nconnection: close\r\n" in answer.lower()


def test_stop_closes_connections_that_stay_idle(gate: Gate) -> None:
    with serving(gate, idle_grace_seconds=0.05) as served, served.connect() as client:
        client.sendall(get("/", connection="keep-alive"))
        until_answered(client)
        served.server.stop()
        assert client.recv(1) == b""


def test_stop_closes_websockets_with_1012(gate: Gate) -> None:
    with serving(gate) as served, websocket(served, "/wait/") as client:
        gate.wait()
        served.server.stop()
        with pytest.raises(ConnectionClosedError, match="1012"):
            client.recv(timeout=LIMIT_SECONDS)
        gate.open.set()


def test_graceful_seconds_end_what_does_not_finish(gate: Gate) -> None:
    with serving(gate, graceful_seconds=0) as served, served.connect() as client:
        client.sendall(get("/wait/"))
        gate.wait()
        served.server.stop()
        assert gate.cancelled.acquire(timeout=LIMIT_SECONDS)


def test_graceful_seconds_end_a_connection_whose_client_does_not_take_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answered = threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        # Much more than the buffers on the way hold.
        await send({"type": "http.response.body", "body": bytes(32 * 1024 * 1024)})
        answered.set()

    with (
        serving(application, graceful_seconds=0, idle_grace_seconds=0, lifespan="off") as served,
        served.connect() as client,
    ):
        client.sendall(get("/"))
        assert answered.wait(LIMIT_SECONDS)
        served.server.stop()
        while "0 requests and 1 connections have not ended in 0 s" not in caplog.text:
            threading.Event().wait(0.005)
        received = everything(client)
    assert len(received) < 32 * 1024 * 1024


def test_max_requests_end_the_server(gate: Gate) -> None:
    listener = listen(Address(port=0))
    with serving(gate, listener=listener, max_requests=1) as served:
        assert served.ask(get("/")).startswith(b"HTTP/1.1 200")
        while listener.fileno() != -1:
            threading.Event().wait(0.005)


def test_unix_socket_serves(gate: Gate, tmp_path: Any) -> None:
    for loop in ("asyncio", "auto"):
        listener = listen_unix(str(tmp_path / loop))
        assert listener.family == socket.AF_UNIX
        with serving(gate, listener=listener, loop=loop) as served:
            assert served.server.address is None
            assert served.ask(get("/unix/")).endswith(b"/unix/\r\n0\r\n\r\n")
