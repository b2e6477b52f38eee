"""Heads that are too large, garbage, and WebSockets that end while the server does."""

import contextlib
import logging
import threading
from typing import Any

import pytest
from websockets.sync.client import connect

from django_asyncbridge.serving._protocols import MAX_HEAD_BYTES, forgiving
from django_asyncbridge.serving.address import listen_unix
from tests.serving.children import LIMIT_SECONDS
from tests.serving.in_process import everything, get, serving

parsers = pytest.mark.parametrize("http", ["h11", "httptools"])


async def count(scope: Any, receive: Any, send: Any) -> None:
    """Answer how many bytes came in the body."""
    total, more = 0, True
    while more:
        message = await receive()
        total, more = total + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d bytes" % total})


def messages_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno >= logging.WARNING]


@parsers
def test_garbage_is_answered_400_and_is_a_line_in_the_log(
    http: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(count, lifespan="off", http=http) as served:
        assert served.ask(b"\x16\x03\x01 garbage\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request")
    assert messages_of(caplog) == ["Invalid HTTP request received."]


def test_head_of_many_headers_that_is_too_large_is_answered_431(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """h11 takes one that comes in one piece: its bound is that of a head which has not ended."""
    half = "x: " + "a" * (MAX_HEAD_BYTES // 2)
    with serving(count, lifespan="off", http="httptools") as served:
        answer = served.ask(get("/", half, half))
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert "A request of 127.0.0.1 was answered 431" in messages_of(caplog)[-1]


@parsers
def test_head_that_does_not_end_is_answered_431(
    http: str, caplog: pytest.LogCaptureFixture
) -> None:
    part = b"a" * 1024
    parts = MAX_HEAD_BYTES // len(part) + 1
    with serving(count, lifespan="off", http=http) as served, served.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ")
        for _ in range(parts):
            client.sendall(part)
        assert everything(client).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert "answered 431: its headers have more than 65536 bytes" in messages_of(caplog)[-1]


@parsers
def test_client_of_http_1_0_gets_no_chunks(http: str) -> None:
    with serving(count, lifespan="off", http=http) as served:
        head, _, body = served.ask(b"GET / HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body == b"0 bytes"


@parsers
def test_body_and_requests_of_one_connection_do_not_count_as_head(http: str) -> None:
    body = b"b" * (2 * MAX_HEAD_BYTES)
    post = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
    large = "x: " + "a" * (MAX_HEAD_BYTES // 4)
    with serving(count, lifespan="off", http=http) as served:
        answer = served.ask(post, body, get("/", large, connection="keep-alive"), get("/", large))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert b"131072 bytes" in answer


def test_refusal_on_a_unix_socket_names_no_address(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    listener = listen_unix(str(tmp_path / "site.sock"))
    with serving(count, listener=listener, lifespan="off", http="httptools") as served:
        served.ask(get("/", "x: " + "a" * MAX_HEAD_BYTES))
    assert "A request of a Unix socket was answered 431" in messages_of(caplog)[-1]


@pytest.mark.parametrize("ending", [True, False])
def test_websocket_that_is_ending_already_does_not_fail_a_stop(ending: bool) -> None:
    closed: list[str] = []

    class Protocol:
        class transport:  # noqa: N801
            @staticmethod
            def close() -> None:
                closed.append("transport")

        def shutdown(self) -> None:
            if ending:
                raise ValueError("in the wrong state")
            closed.append("orderly")

    forgiving(Protocol)().shutdown()
    assert closed == (["transport"] if ending else ["orderly"])


def test_server_without_websockets_refuses_them() -> None:
    with serving(count, lifespan="off", ws="none") as served:
        request = get("/", "upgrade: websocket", connection="upgrade")
        with served.connect() as client:
            client.sendall(request)
            assert client.recv(65536)


def test_stop_while_clients_close_their_websockets_ends_in_order() -> None:
    async def accept(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"

    with serving(accept, lifespan="off") as served, contextlib.ExitStack() as stack:
        assert served.server.address is not None
        url = served.server.address.url(served.server.address.port).replace("http", "ws")
        clients = [stack.enter_context(connect(url, proxy=None)) for _ in range(8)]
        closers = [threading.Thread(target=client.close) for client in clients]
        for closer in closers[:4]:
            closer.start()
        served.server.stop()
        for closer in closers[4:]:
            closer.start()
        for closer in closers:
            closer.join(LIMIT_SECONDS)
