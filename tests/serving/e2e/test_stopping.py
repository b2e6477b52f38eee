"""Signals in the middle of requests: whatever a server has taken, it answers."""

import errno
import os
import re
import signal
import socket
from collections.abc import Callable

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.serving.e2e.conftest import Servers
from tests.serving.e2e.content import BLOCK
from tests.serving.e2e.load import Load
from tests.serving.e2e.servers import Server, complaints, until
from tests.serving.e2e.wire import LIMIT_SECONDS, Connection, request

MANY = 100  # blocks: more than all buffers on the way hold


def one(server: Server) -> None:
    server.signal(signal.SIGTERM)


def all_of_them(server: Server) -> None:
    """Do what systemd does, and others: send the signal to all processes of a service."""
    os.killpg(server.process.pid, signal.SIGTERM)


Tell = Callable[[Server], None]

ways = pytest.mark.parametrize(
    ("options", "tell"),
    [
        (["--http", "httptools"], one),
        (["--http", "h11"], one),
        (["--workers", "2"], one),
        (["--workers", "2"], all_of_them),
    ],
    ids=["httptools", "h11", "workers", "group"],
)
alone_or_not = pytest.mark.parametrize(
    "options", [[], ["--workers", "2"]], ids=["alone", "workers"]
)


def begin_download(server: Server) -> Connection:
    """Ask for something that stays in flight until it is read."""
    connection = server.connect()
    connection.get(f"/download/?blocks={MANY}&length=1")
    assert connection.head().status == 200
    return connection


def refuses(server: Server) -> bool:
    """Tell whether a new connection is refused."""
    with socket.socket() as client:
        return client.connect_ex(server.address) == errno.ECONNREFUSED


def answered_lines(server: Server) -> int:
    return len([line for line in server.lines if re.search(r'"GET /work/ HTTP/1.1" 200', line)])


@ways
def test_sigterm_under_load_loses_no_request(
    start: Servers, options: list[str], tell: Tell
) -> None:
    server = start("0", *options)
    with Load(server.address) as load:
        load.go_on()
        tell(server)
        load.join()
    assert load.lost == []
    assert server.end() == 0
    assert answered_lines(server) == load.answered
    assert complaints(server.lines) == []


@ways
def test_sigterm_lets_requests_finish_closes_websockets_and_takes_nothing_new(
    start: Servers, options: list[str], tell: Tell
) -> None:
    server = start("0", *options)
    with (
        begin_download(server) as download,
        server.connect() as upload,
        connect(server.websocket_url(), proxy=None, open_timeout=LIMIT_SECONDS) as websocket,
    ):
        upload.send(request("POST", "/upload/", "content-length: 5", "expect: 100-continue"))
        assert upload.head().status == 100
        tell(server)
        with pytest.raises(ConnectionClosedError) as caught:
            websocket.recv(timeout=LIMIT_SECONDS)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1012
        # Another worker may take a little longer to close the socket.
        until(lambda: refuses(server))
        upload.send(b"hello")
        response = upload.response()
        assert response.json()["bytes"] == 5
        assert response.headers[b"connection"] == b"close"
        assert upload.rest() == b""
        assert download.read(MANY * len(BLOCK)) == BLOCK * MANY
    assert server.end() == 0
    assert complaints(server.lines) == []


@alone_or_not
def test_second_sigterm_ends_at_once(start: Servers, options: list[str]) -> None:
    server = start("0", *options)
    with begin_download(server):
        server.signal(signal.SIGTERM)
        server.wait_for("Waiting for connections to close")
        server.signal(signal.SIGTERM)
        assert server.end() == 128 + signal.SIGTERM


def test_graceful_timeout_ends_what_takes_longer(start: Servers) -> None:
    server = start("0", "--graceful-timeout", "1")
    with begin_download(server) as download:
        assert server.stop() == 0
        assert len(download.rest()) < MANY * len(BLOCK)
    assert complaints(server.lines) == []
