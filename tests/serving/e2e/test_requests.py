"""Requests one after another and many at once: what HTTP/1.1 asks of a server, byte by byte."""

import hashlib
from collections.abc import Iterator

import pytest

from tests.serving.e2e.content import BLOCK
from tests.serving.e2e.servers import Server, complaints, running
from tests.serving.e2e.wire import Response, request

# 8 MiB: much more than the buffers of sockets, servers and Django hold.
BLOCKS = 128
LARGE = BLOCK * BLOCKS
LARGE_DIGEST = hashlib.sha256(LARGE).hexdigest()


@pytest.fixture(scope="module", params=["httptools", "h11"])
def site(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Give a server with each of the parsers; in the end it has had nothing to complain about."""
    with running("0", "--http", request.param) as server:
        yield server
        assert server.stop() == 0
        assert complaints(server.lines) == []


def assert_uploaded(response: Response) -> None:
    assert response.status == 200
    assert response.json() == {"bytes": len(LARGE), "sha256": LARGE_DIGEST}


# --- Connections -----------------------------------------------------------------


def test_connection_is_kept_for_request_after_request(site: Server) -> None:
    with site.connect() as connection:
        for number in range(20):
            for path in ("/", "/sync/"):
                response = connection.ask(f"{path}?name={number}")
                assert (response.version, response.status) == (b"HTTP/1.1", 200)
                assert response.body == b"hello %d" % number
                assert b"connection" not in response.headers


def test_requests_sent_at_once_are_answered_in_order(site: Server) -> None:
    targets = [f"{path}?name={n}" for n in range(10) for path in ("/", "/sync/", "/nothing/")]
    with site.connect() as connection:
        connection.send(b"".join(request("GET", target) for target in targets))
        answers = [connection.response() for _ in targets]
    assert [answer.status for answer in answers] == [200, 200, 404] * 10
    names = [answer.body.removeprefix(b"hello ") for answer in answers if answer.status == 200]
    assert names == [b"%d" % n for n in range(10) for _ in range(2)]


def test_requests_with_bodies_sent_at_once_keep_their_bodies_apart(site: Server) -> None:
    bodies = [b"%d" % number * number for number in range(9)]
    requests = [request("POST", "/upload/", f"content-length: {len(body)}") for body in bodies]
    with site.connect() as connection:
        connection.send(b"".join(map(bytes.__add__, requests, bodies)))
        answers = [connection.response().json() for _ in bodies]
    assert [answer["sha256"] for answer in answers] == [
        hashlib.sha256(body).hexdigest() for body in bodies
    ]


def test_connection_close_is_answered_and_done(site: Server) -> None:
    with site.connect() as connection:
        response = connection.ask("/", "connection: close")
        assert response.headers[b"connection"] == b"close"
        assert response.body == b"hello "
        assert connection.rest() == b""


def test_http_1_0_is_answered_and_closed(site: Server) -> None:
    with site.connect() as connection:
        connection.get("/", version="1.0")
        assert connection.response().body == b"hello "
        assert connection.rest() == b""


def test_stream_for_http_1_0_has_no_chunks(site: Server) -> None:
    # RFC 9112, section 6.1: an older client does not know Transfer-Encoding.
    with site.connect() as connection:
        connection.get("/download/?blocks=2", version="1.0")
        head = connection.head()
        assert b"transfer-encoding" not in head.headers
        assert connection.rest() == BLOCK * 2


def test_200_connections_at_once_are_answered(site: Server) -> None:
    connections = [site.connect() for _ in range(200)]
    for number, connection in enumerate(connections):
        connection.get(f"{'/sync/' if number % 2 else '/'}?name={number}")
    for number, connection in reversed(list(enumerate(connections))):
        with connection:
            assert connection.response().body == b"hello %d" % number


# --- HEAD and 100-continue -------------------------------------------------------


@pytest.mark.parametrize("target", ["/", "/sync/", "/download/?blocks=1&length=1"])
def test_head_has_the_headers_of_get_and_no_body(site: Server, target: str) -> None:
    with site.connect() as connection:
        connection.send(request("HEAD", target))
        head = connection.response("HEAD")
        get = connection.ask(target)
    assert head.status == get.status == 200
    assert int(head.headers[b"content-length"]) == len(get.body)
    for headers in (head.headers, get.headers):
        headers.pop(b"date", None)
    assert head.headers == get.headers


def test_head_of_a_stream_has_no_body(site: Server) -> None:
    with site.connect() as connection:
        connection.send(request("HEAD", "/download/?blocks=100") + request("GET", "/"))
        assert connection.response("HEAD").status == 200
        assert connection.response().body == b"hello "


def test_continue_is_said_before_the_body_is_sent(site: Server) -> None:
    with site.connect() as connection:
        connection.send(request("POST", "/upload/", "content-length: 2", "expect: 100-continue"))
        assert connection.head().status == 100
        connection.send(b"ok")
        assert connection.response().json()["bytes"] == 2
        assert connection.ask("/").status == 200


# --- Large ones ------------------------------------------------------------------


def test_large_upload_arrives_whole(site: Server) -> None:
    with site.connect() as connection:
        connection.send(request("POST", "/upload/", f"content-length: {len(LARGE)}"))
        connection.send(LARGE)
        assert_uploaded(connection.response())
        assert connection.ask("/").status == 200


def test_large_upload_in_chunks_arrives_whole(site: Server) -> None:
    # One length does not fit the blocks in which anybody reads.
    pieces = [LARGE[start : start + 50_021] for start in range(0, len(LARGE), 50_021)]
    with site.connect() as connection:
        connection.send(request("POST", "/upload/", "transfer-encoding: chunked"))
        for piece in pieces:
            connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        connection.send(b"0\r\n\r\n")
        assert_uploaded(connection.response())
        assert connection.ask("/").status == 200


def test_chunk_that_comes_in_pieces_is_put_together(site: Server) -> None:
    body = b"4;name=value\r\nwiki\r\n5\r\npedia\r\n0\r\ntrailer: yes\r\n\r\n"
    with site.connect() as connection:
        connection.send(request("POST", "/upload/", "transfer-encoding: chunked"))
        for number in body:
            connection.send(bytes([number]))
        digest = hashlib.sha256(b"wikipedia").hexdigest()
        assert connection.response().json() == {"bytes": 9, "sha256": digest}
        assert connection.ask("/").status == 200


@pytest.mark.parametrize("path", ["/download/", "/download/sync/"])
@pytest.mark.parametrize("length", [True, False], ids=["length", "chunks"])
def test_large_download_arrives_whole(site: Server, path: str, length: bool) -> None:
    with site.connect() as connection:
        response = connection.ask(f"{path}?blocks={BLOCKS}{'&length=1' if length else ''}")
        assert (b"content-length" in response.headers) == length
        assert (response.headers.get(b"transfer-encoding") == b"chunked") != length
        assert hashlib.sha256(response.body).hexdigest() == LARGE_DIGEST
        assert connection.ask("/").status == 200
