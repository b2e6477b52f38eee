"""Clients that are slow, talk garbage or leave: they get what they deserve, and nobody else notices."""

import socket
from collections.abc import Iterator

import pytest
from websockets.sync.client import connect

from tests.serving.e2e.content import BLOCK
from tests.serving.e2e.servers import Server, complaints, running, until
from tests.serving.e2e.wire import LIMIT_SECONDS, request

MANY = 100  # blocks: more than all buffers on the way hold


@pytest.fixture(scope="module", params=["httptools", "h11"])
def site(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Give a server with each of the parsers."""
    with running("0", "--http", request.param) as server:
        yield server
        assert server.stop() == 0


# --- Slow ------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/download/", "/download/sync/"])
def test_clients_that_read_slowly_do_not_stop_others(site: Server, path: str) -> None:
    slow = [site.connect() for _ in range(10)]
    for connection in slow:
        connection.get(f"{path}?blocks={MANY}&length=1")
        assert connection.head().status == 200
    for number in range(10):
        assert {connection.read(1) for connection in slow} == {bytes([number])}
        assert site.fetch("/") == site.fetch("/sync/") == b"hello "
    for connection in slow:
        with connection:
            assert connection.read(MANY * len(BLOCK) - 10) == (BLOCK * MANY)[10:]


def test_clients_that_send_headers_slowly_do_not_stop_others(site: Server) -> None:
    slow = [site.connect() for _ in range(10)]
    for number in request("GET", "/?name=slow"):
        for connection in slow:
            connection.send(bytes([number]))
        assert site.fetch("/sync/") == b"hello "
    for connection in slow:
        with connection:
            assert connection.response().body == b"hello slow"


def test_clients_that_send_bodies_slowly_do_not_stop_others(site: Server) -> None:
    slow = [site.connect() for _ in range(10)]
    for connection in slow:
        connection.send(request("POST", "/upload/", "content-length: 5"))
    for number in b"hello":
        for connection in slow:
            connection.send(bytes([number]))
        assert site.fetch("/sync/") == b"hello "
    for connection in slow:
        with connection:
            assert connection.response().json()["bytes"] == 5


# --- Garbage ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 what TLS begins with\r\n\r\n",
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\na name: value\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: many\r\n\r\n",
    ],
    ids=["tls", "word", "no colon", "space in name", "length"],
)
def test_garbage_is_answered_400_and_logged_in_a_line(site: Server, data: bytes) -> None:
    before = site.now()
    with site.connect() as connection:
        connection.send(data)
        response = connection.response()
        assert response.status == 400
        assert response.headers[b"connection"] == b"close"
        assert connection.rest() == b""
    assert lines_of_server(site, before) == ["WARNING:  Invalid HTTP request received."]


def test_garbage_in_chunks_is_answered_400_and_logged_in_a_line(site: Server) -> None:
    before = site.now()
    with site.connect() as connection:
        connection.send(request("POST", "/upload/", "transfer-encoding: chunked") + b"nine\r\n")
        assert connection.response().status == 400
        assert connection.rest() == b""
    site.wait_until_idle()
    lines = lines_of_server(site, before)
    assert lines == ["WARNING:  Invalid HTTP request received."]


@pytest.mark.parametrize("kind", ["one", "many", "endless"])
def test_headers_that_are_too_large_are_answered_431_and_logged_in_a_line(
    site: Server, kind: str
) -> None:
    before = site.now()
    headers = {
        "one": [f"x: {'y' * 200_000}"],
        "many": [f"x-{number}: {'y' * 1000}" for number in range(200)],
        "endless": [],
    }[kind]
    head = request("GET", "/", *headers)
    if kind == "endless":
        head = head[:-2] + b"x: " + b"y" * 200_000
    with site.connect() as connection:
        connection.send(head)
        response = connection.response()
        assert response.status == 431
        assert response.headers[b"connection"] == b"close"
    lines = lines_of_server(site, before)
    assert len(lines) == 1
    assert lines[0].startswith("WARNING:  A request of 127.0.0.1 was answered 431")


# --- Gone ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_that_leaves_an_upload_is_no_error(site: Server, how: str) -> None:
    before = site.now()
    for headers in (["content-length: 1000000"], ["transfer-encoding: chunked"]):
        connection = site.connect()
        connection.send(request("POST", "/upload/", *headers, "expect: 100-continue"))
        assert connection.head().status == 100
        connection.send(b"10000\r\n" + BLOCK)
        getattr(connection, how)()
    assert_forgotten(site, before)


@pytest.mark.parametrize("path", ["/download/", "/download/sync/"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_client_that_leaves_a_download_is_no_error(site: Server, how: str, path: str) -> None:
    before = site.now()
    connection = site.connect()
    connection.get(f"{path}?blocks={MANY}")
    assert connection.head().status == 200
    getattr(connection, how)()
    assert_forgotten(site, before)


def test_client_that_leaves_in_the_middle_of_a_request_line_is_no_error(site: Server) -> None:
    before = site.now()
    for data in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nhost: local"):
        with site.connect() as connection:
            connection.send(data)
    assert_forgotten(site, before)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_client_that_leaves_a_websocket_is_no_error(site: Server, busy: bool) -> None:
    before = site.now()
    codes = len(site.fetch_json("/active/")["close_codes"])
    with connect(site.websocket_url(), proxy=None, open_timeout=LIMIT_SECONDS) as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=LIMIT_SECONDS) == "hello"
        if busy:
            for _ in range(10):
                websocket.send(BLOCK)
        websocket.socket.shutdown(socket.SHUT_RDWR)
        until(lambda: len(site.fetch_json("/active/")["close_codes"]) > codes)
    # No code came, or no closing at all: which of the two a server says differs.
    assert site.fetch_json("/active/")["close_codes"][-1] in (1005, 1006)
    assert_forgotten(site, before)


def assert_forgotten(site: Server, before: int) -> None:
    """Assert that the server has ended what clients have left, and has not complained."""
    site.wait_until_idle()
    assert complaints(site.log_since(before)) == []


def lines_of_server(site: Server, before: int) -> list[str]:
    """Return what the server has written since then, but for one line for each request."""
    return [line for line in site.log_since(before) if ' - "' not in line and "mark" not in line]
