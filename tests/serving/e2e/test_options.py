"""Options of the command that need a server of their own."""

import signal
import socket
import ssl
import stat
from pathlib import Path

import pytest
from websockets.sync.client import connect, unix_connect

from tests.serving.e2e.conftest import Servers
from tests.serving.e2e.load import Load
from tests.serving.e2e.servers import complaints
from tests.serving.e2e.wire import LIMIT_SECONDS, Connection, CutError, request

APPLICATIONS = """
async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"asgi"})

def wsgi(environ, start_response):
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"wsgi ", environ["wsgi.input"].read()]
"""


# --- Where -----------------------------------------------------------------------


def test_unix_socket_that_a_killed_server_has_left_is_taken_and_gone_at_the_end(
    start: Servers, tmp_path: Path
) -> None:
    path = tmp_path / "site.sock"
    start("--uds", str(path)).kill()
    assert stat.S_ISSOCK(path.stat().st_mode)
    server = start("--uds", str(path), "--workers", "1")
    with Connection(str(path)) as connection:
        assert connection.ask("/").body == b"hello "
        assert not connection.ask("/scope/").json()["client"]
    with unix_connect(str(path), uri="ws://localhost/ws/") as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=LIMIT_SECONDS) == "hello"
    assert server.stop() == 0
    assert not path.exists()
    assert complaints(server.lines) == []


def test_inherited_socket_is_served_by_one_server_after_the_other(start: Servers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = listener.fileno()
        for options in (["--workers", "2"], []):
            server = start("--fd", str(fd), *options, pass_fds=[fd])
            with Connection(listener.getsockname()) as connection:
                assert connection.ask("/").body == b"hello "
            assert server.stop() == 0
            assert complaints(server.lines) == []


# --- What ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("applications.asgi", b"asgi"),
        ("applications:wsgi", b"wsgi hello"),
    ],
)
def test_app_is_served(start: Servers, tmp_path: Path, path: str, answer: bytes) -> None:
    (tmp_path / "applications.py").write_text(APPLICATIONS)
    server = start("0", "--app", path, cwd=tmp_path)
    with server.connect() as connection:
        connection.send(request("POST", "/", "content-length: 5") + b"hello")
        assert connection.response().body == answer
    assert server.stop() == 0
    assert complaints(server.lines) == []


# --- How -------------------------------------------------------------------------


def test_limit_concurrency_answers_503_and_a_known_proxy_is_believed(start: Servers) -> None:
    server = start("0", "--limit-concurrency", "1", "--forwarded-allow-ips", "127.0.0.1")
    with server.connect() as first, server.connect() as second:
        first.send(request("POST", "/upload/", "content-length: 5", "expect: 100-continue"))
        assert first.head().status == 100
        refused = second.ask("/")
        assert refused.status == 503
        assert refused.headers[b"retry-after"].isdigit()
        first.send(b"hello")
        assert first.response().json()["bytes"] == 5
    headers = ["x-forwarded-proto: https", "x-forwarded-for: 10.0.0.7"]
    scope = server.fetch_json("/scope/", *headers)
    assert scope["client"] == "10.0.0.7"
    assert scope["loop"] == "uvloop"
    assert server.stop() == 0


def test_max_requests_ends_the_process(start: Servers) -> None:
    server = start("0", "--max-requests", "5")
    for _ in range(5):
        assert server.fetch("/") == b"hello "
    assert server.end() == 0
    assert complaints(server.lines) == []


def test_loop_root_path_and_whom_to_believe_can_be_chosen(start: Servers) -> None:
    server = start("0", "--loop", "asyncio", "--root-path", "/shop", "--no-proxy-headers")
    scope = server.fetch_json("/scope/", "x-forwarded-proto: https", "x-forwarded-for: 10.0.0.7")
    assert scope["loop"] == "asyncio"
    assert (scope["script_name"], scope["path"]) == ("/shop", "/shop/scope/")
    assert (scope["scheme"], scope["client"]) == ("http", "127.0.0.1")
    with Load(server.address, clients=2) as load:
        load.go_on()
        server.signal(signal.SIGTERM)
        load.join()
    assert load.lost == []
    assert server.end() == 0
    assert complaints(server.lines) == []


# --- TLS -------------------------------------------------------------------------


def test_tls_serves_https_and_secure_websockets(start: Servers, certificates: Path) -> None:
    certificate = str(certificates / "localhost.pem")
    key = str(certificates / "localhost-key.pem")
    server = start("0", "--ssl-certfile", certificate, "--ssl-keyfile", key)
    assert [line for line in server.lines if f"https://127.0.0.1:{server.address[1]}/" in line]
    trust = ssl.create_default_context(cafile=certificate)
    with Connection(server.address, tls=trust) as connection:
        assert connection.ask("/scope/").json()["scheme"] == "https"
        connection.get("/download/?blocks=20")
        assert len(connection.response().body) == 20 * 65536
    with pytest.raises((CutError, ssl.SSLError)), server.connect() as plain:
        plain.ask("/")
    with connect(
        "wss://localhost/ws/",
        ssl=trust,
        sock=socket.create_connection(server.address),
        open_timeout=LIMIT_SECONDS,
        proxy=None,
    ) as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=LIMIT_SECONDS) == "hello"
    assert server.stop() == 0
    assert complaints(server.lines) == []
