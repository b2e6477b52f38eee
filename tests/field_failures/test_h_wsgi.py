"""Section H: WSGI applications under an ASGI server (C82-C95), one test for each row or more."""

import asyncio
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.validate import validator

import pytest
from django.core.handlers.wsgi import WSGIRequest

from tests.field_failures.common import on_plain_loop
from tests.wsgi_support import (
    END,
    REQUEST,
    Closing,
    Environ,
    Message,
    Server,
    Wsgi,
    answer,
    body,
    environ_of,
    failed,
    request,
    responding,
    start,
)

StartResponse = Callable[..., Any]


def test_c82_iterable_is_closed_although_its_body_is_longer_than_its_content_length() -> None:
    """C82: files, cursors and request_finished hang on it."""
    closing = Closing(b"abc", b"def")
    assert answer(closing.application(("Content-Length", "4"))) == [
        start(headers=[(b"content-length", b"4")]),
        body(b"abc"),
        body(b"d"),
        END,
    ]
    assert closing.closed == closing.threads[:1]


def test_c83_requests_run_at_the_same_time_in_threads_of_their_own() -> None:
    """C83: wsgi.multithread is true, and in fact: each waits for all others."""
    barrier = threading.Barrier(4)

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        assert environ["wsgi.multithread"]
        barrier.wait(10)
        start_response("200 OK", [])
        return [b"done"]

    async def main() -> None:
        servers = [Server(*REQUEST) for _ in range(4)]
        await asyncio.gather(*(server.serve(application) for server in servers))
        assert [server.bodies() for server in servers] == [[b"done"]] * 4

    on_plain_loop(main)


def test_c84_endless_generator_is_closed_when_the_client_has_left() -> None:
    """C84: although send() never says so."""
    closed = threading.Event()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            closed.set()

    async def main() -> None:
        server = Server(*REQUEST)
        serving = asyncio.create_task(server.serve(application))
        await server.until_sent(3)
        server.leave()
        await serving
        assert closed.is_set()
        assert END not in server.sent

    on_plain_loop(main)


def test_c85_start_response_returns_write() -> None:
    """C85: it returned None."""

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        write(b"x")
        return [b"y"]

    assert answer(application) == [start(), body(b"x"), body(b"y"), END]


def test_c86_response_header_in_latin_1_is_sent() -> None:
    """C86: UnicodeEncodeError."""
    value = 'attachment; filename="é.txt"'
    [started, *_] = answer(responding(headers=[("Content-Disposition", value)]))
    assert started["headers"] == [(b"content-disposition", value.encode("latin-1"))]


def test_c87_cookie_headers_of_http_2_are_joined_as_cookies() -> None:
    """C87: they were joined with a comma, and lost."""
    headers = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
    environ = environ_of(headers=headers, http_version="2")
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert WSGIRequest(environ).COOKIES == {"a": "1", "b": "2"}


def test_c88_header_with_an_underscore_does_not_pass_for_another() -> None:
    """C88: it was merged with the one that the proxy had set."""
    headers = [(b"x_forwarded_for", b"6.6.6.6"), (b"x-forwarded-for", b"192.0.2.1")]
    assert environ_of(headers=headers)["HTTP_X_FORWARDED_FOR"] == "192.0.2.1"


def test_c89_root_path_is_cut_off_at_a_slash_only() -> None:
    """C89: PATH_INFO was ``v2/x``."""
    environ = environ_of(root_path="/api", path="/apiv2/x")
    assert environ["PATH_INFO"] == "/apiv2/x"
    environ = environ_of(root_path="/api", path="/api/v2/x")
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/api", "/v2/x")


def test_c90_query_string_that_is_not_ascii_is_its_bytes() -> None:
    """C90: it was answered 400, "Too many duplicate headers"."""
    environ = environ_of(query_string=b"q=\xc3\xa9")
    assert environ["QUERY_STRING"] == "q=\xc3\xa9"
    assert WSGIRequest(environ).GET["q"] == "é"


@pytest.mark.parametrize("read_ahead_bytes", [0, 1000])
def test_c91_body_without_a_content_length_is_read_to_its_end(read_ahead_bytes: int) -> None:
    """C91: Flask reads it by wsgi.input_terminated, whatever its size."""
    seen: list[bytes] = []

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        assert environ["wsgi.input_terminated"]
        seen.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return []

    async def main() -> None:
        server = Server(request(b"a=1&", more_body=True), request(b"b=2"))
        await server.serve(application, "POST", read_ahead_bytes=read_ahead_bytes)

    on_plain_loop(main)
    assert seen == [b"a=1&b=2"]


def test_c91_django_reads_a_body_without_a_content_length() -> None:
    """C91: Django asks for a CONTENT_LENGTH."""
    posted: list[dict[str, Any]] = []

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        posted.append(WSGIRequest(environ).POST.dict())
        start_response("200 OK", [])
        return []

    form = [(b"content-type", b"application/x-www-form-urlencoded")]
    messages = [request(b"a=1&", more_body=True), request(b"b=2")]
    answer(application, messages, method="POST", headers=form)
    assert posted == [{"a": "1", "b": "2"}]


def test_c92_client_that_leaves_during_the_body_ends_the_request_quietly() -> None:
    """C92: ValueError."""
    application = responding(b"never")
    messages = [request(b"a", more_body=True), {"type": "http.disconnect"}]
    assert answer(application, messages, method="POST") == []


def test_c93_lifespan_and_websocket_get_the_answer_of_their_protocol() -> None:
    """C93: ValueError."""
    lifespan = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert answer(responding(), lifespan, type="lifespan") == [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.complete"},
    ]
    websocket = [{"type": "websocket.connect"}]
    assert answer(responding(), websocket, type="websocket") == [
        {"type": "websocket.close", "code": 1000}
    ]


def test_c94_error_page_replaces_a_response_of_which_nothing_was_sent() -> None:
    """C94: an empty first piece sent the headers."""

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b""
        start_response("500 Internal Server Error", [], failed())
        yield b"an error page"

    assert answer(application) == [start(500), body(b"an error page"), END]


def test_c95_status_needs_no_reason() -> None:
    """C95: ValueError."""
    assert answer(responding(status="204")) == [start(204), END]


# --- PEP 3333 as the standard library checks it ---------------------------------------------


def returning(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"ab", b"cd"]


def reading(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    file = environ["wsgi.input"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield file.read(1)
    yield file.readline()
    yield from file.readlines()
    yield from file


def writing(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])(b"written")
    return [b""]


def failing(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    try:
        raise LookupError("its own")
    except LookupError:
        start_response("500 Oh", [("Content-Type", "text/plain")], sys.exc_info())
    return [b"page"]


def redirecting(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("304 Not Modified", [])
    return []


@pytest.mark.parametrize(
    ("application", "expected"),
    [
        (returning, b"abcd"),
        (reading, b"one\ntwo\nthree"),
        (writing, b"written"),
        (failing, b"page"),
        (redirecting, b""),
    ],
)
@pytest.mark.parametrize("read_ahead_bytes", [0, 1000])
def test_c82_c95_validator_of_the_standard_library_has_nothing_to_say(
    application: Wsgi, expected: bytes, read_ahead_bytes: int
) -> None:
    """C82-C95: it checks environ, streams, iteration and close()."""
    messages: list[Message] = [request(b"one\nt", more_body=True), request(b"wo\nthree")]

    async def main() -> None:
        server = Server(*messages)
        checked = validator(application)
        await server.serve(checked, "POST", read_ahead_bytes=read_ahead_bytes)
        assert b"".join(server.bodies()) == expected

    on_plain_loop(main)
