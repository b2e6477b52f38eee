"""A WSGI application under an ASGI server: the environ it gets, the messages it sends, how it ends."""

import asyncio
import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import pytest

from django_asyncbridge.bridge.wsgi import WsgiToAsgi, WsgiToAsgiInstance
from tests.wsgi_support import (
    END,
    REQUEST,
    SCOPE,
    Closing,
    Environ,
    Message,
    Server,
    answer,
    body,
    environ_of,
    failed,
    responding,
    serve,
    start,
)

# --- The environ -----------------------------------------------------------------


def test_environ_of_a_plain_request_has_what_wsgi_demands() -> None:
    environ = environ_of(path="/a", query_string=b"b=c", server=("example.org", 8000))
    assert environ.pop("wsgi.input").read is not None
    assert environ == {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a",
        "QUERY_STRING": "b=c",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.input_terminated": True,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }


def test_environ_of_a_scope_without_optional_keys_has_defaults() -> None:
    scope = {key: SCOPE[key] for key in ("type", "http_version", "method", "path")}
    instance = WsgiToAsgiInstance(responding())
    environ = instance.build_environ(scope, io.BytesIO())
    assert environ["QUERY_STRING"] == ""
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("localhost", "80")
    assert "REMOTE_ADDR" not in environ


def test_environ_names_scheme_client_and_server() -> None:
    environ = environ_of(scheme="https", client=("192.0.2.1", 1234), server=("/run/socket", None))
    assert environ["wsgi.url_scheme"] == "https"
    assert environ["REMOTE_ADDR"] == "192.0.2.1"
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("/run/socket", "0")


@pytest.mark.parametrize(
    ("root_path", "path", "script_name", "path_info"),
    [
        ("", "/x", "", "/x"),
        ("/", "/x", "", "/x"),
        ("/api", "/api/v1", "/api", "/v1"),
        ("/api", "/api/", "/api", "/"),
        ("/api", "/api", "/api", ""),
        ("/api/", "/api/v1", "/api", "/v1"),
        ("/api", "/apiv2/x", "/api", "/apiv2/x"),
        ("/api", "/other", "/api", "/other"),
        ("/é", "/é/ü", "/\xc3\xa9", "/\xc3\xbc"),
        ("", "*", "", "*"),
    ],
)
def test_environ_divides_the_path_at_the_root_path(
    root_path: str, path: str, script_name: str, path_info: str
) -> None:
    environ = environ_of(root_path=root_path, path=path)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


def test_environ_of_a_query_string_that_is_not_ascii_has_its_bytes() -> None:
    assert environ_of(query_string="q=é".encode())["QUERY_STRING"] == "q=\xc3\xa9"


def test_environ_has_headers_under_their_wsgi_names() -> None:
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", b"0"),
        (b"x-forwarded-for", b"192.0.2.1"),
        (b"x-latin", b"\xe9"),
    ]
    environ = environ_of(headers=headers)
    assert environ["CONTENT_TYPE"] == "text/plain"
    assert environ["CONTENT_LENGTH"] == "0"
    assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.1"
    assert environ["HTTP_X_LATIN"] == "é"


def test_environ_joins_repeated_headers_in_order() -> None:
    headers = [(b"accept", b"a"), (b"x-other", b"o"), (b"accept", b"b")]
    assert environ_of(headers=headers)["HTTP_ACCEPT"] == "a,b"


def test_environ_joins_cookie_headers_as_cookies_are_joined() -> None:
    headers = [(b"cookie", b"a=1; b=2"), (b"cookie", b"c=3")]
    assert environ_of(headers=headers)["HTTP_COOKIE"] == "a=1; b=2; c=3"


def test_environ_leaves_out_headers_that_would_pass_for_others() -> None:
    headers = [(b"x_forwarded_for", b"evil"), (b"content_length", b"9"), (b"x-forwarded_for", b"e")]
    environ = environ_of(headers=headers)
    assert "HTTP_X_FORWARDED_FOR" not in environ
    assert "CONTENT_LENGTH" not in environ


@pytest.mark.parametrize("limit", [3, 1])
def test_request_with_a_header_repeated_too_often_is_answered_400(limit: int) -> None:
    sent = answer(
        responding(b"never"),
        headers=[(b"x-many", b"1")] * (limit + 1),
        duplicate_header_limit=limit,
    )
    assert sent == [
        start(400, [(b"content-type", b"text/plain")]),
        {"type": "http.response.body", "body": b"Bad Request: Too many duplicate headers"},
    ]


def test_request_with_a_header_repeated_as_often_as_allowed_is_answered() -> None:
    environ = environ_of(headers=[(b"x-many", b"1")] * 3, duplicate_header_limit=3)
    assert environ["HTTP_X_MANY"] == "1,1,1"


def test_request_without_a_limit_of_headers_is_answered() -> None:
    environ = environ_of(headers=[(b"x-many", b"1")] * 200, duplicate_header_limit=0)
    assert len(environ["HTTP_X_MANY"]) == 399


def test_build_environ_overridden_reaches_the_application_and_its_errors_are_its_own() -> None:
    class Overridden(WsgiToAsgiInstance):
        def build_environ(self, scope: Any, body: IO[bytes]) -> Environ:
            if scope["path"] == "/bad":
                raise ValueError("the override's")
            return {**super().build_environ(scope, body), "extra": "1"}

    seen = []

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        seen.append(environ["extra"])
        start_response("200 OK", [])
        return []

    asyncio.run(serve(Overridden(application), SCOPE, REQUEST))
    assert seen == ["1"]
    with pytest.raises(ValueError, match="the override's"):
        asyncio.run(serve(Overridden(application), {**SCOPE, "path": "/bad"}, REQUEST))


# --- The request body ----------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100_000])
def test_body_in_several_messages_is_read_as_one(size: int) -> None:
    read = []

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        read.append(environ["wsgi.input"].read())
        start_response("200 OK", [])
        return []

    answer(
        application,
        [
            {"type": "http.request", "body": b"a" * size, "more_body": True},
            {"type": "http.request", "more_body": True},
            {"type": "http.request", "body": b"b"},
        ],
    )
    assert read == [b"a" * size + b"b"]


@pytest.mark.parametrize("before", [0, 1])
def test_disconnect_during_the_body_ends_quietly_without_the_application(before: int) -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise AssertionError("called")

    messages = [{"type": "http.request", "body": b"a", "more_body": True}] * before
    assert answer(application, [*messages, {"type": "http.disconnect"}]) == []


def test_message_of_unknown_type_during_the_body_is_refused() -> None:
    with pytest.raises(ValueError, match=r"http\.surprise"):
        answer(responding(), [{"type": "http.surprise"}])


# --- The response ----------------------------------------------------------------------


def test_response_of_several_chunks_is_sent_as_it_comes() -> None:
    application = responding(b"a", b"b", headers=[("X-One", "1"), ("X-One", "2")])
    assert answer(application) == [
        start(headers=[(b"x-one", b"1"), (b"x-one", b"2")]),
        body(b"a"),
        body(b"b"),
        END,
    ]


@pytest.mark.parametrize("chunks", [(), (b"",), (b"", b"")])
def test_response_without_a_body_is_its_headers_and_the_end(chunks: tuple[bytes, ...]) -> None:
    assert answer(responding(*chunks)) == [start(), END]


@pytest.mark.parametrize(
    ("status", "code"), [("200 OK", 200), ("204", 204), ("404 Not Found At All", 404)]
)
def test_response_status_is_its_number_with_or_without_reason(status: str, code: int) -> None:
    assert answer(responding(status=status)) == [start(code), END]


def test_response_status_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        answer(responding(status="OK"))


def test_response_header_with_latin_1_characters_is_sent_in_that_code() -> None:
    header = ("Content-Disposition", 'attachment; filename="é.txt"')
    [started, _] = answer(responding(headers=[header]))
    assert started["headers"] == [
        (b"content-disposition", b'attachment; filename="\xe9.txt"'),
    ]


@pytest.mark.parametrize(
    ("length", "chunks", "sent"),
    [
        (4, [b"ab", b"cd"], [b"ab", b"cd"]),
        (4, [b"ab", b"cdef", b"gh"], [b"ab", b"cd"]),
        (4, [b"ab", b"", b"cd"], [b"ab", b"", b"cd"]),
        (0, [b"ab", b"cd"], [b""]),
    ],
)
def test_response_with_content_length_is_cut_there(
    length: int, chunks: list[bytes], sent: list[bytes]
) -> None:
    closing = Closing(*chunks)
    messages = answer(closing.application(("Content-Length", str(length))))
    assert messages == [
        start(headers=[(b"content-length", str(length).encode())]),
        *map(body, sent),
        END,
    ]
    assert len(closing.closed) == 1


@pytest.mark.parametrize("make", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize(("chunks", "sent"), [([], 0), ([b"ab"], 2)])
def test_response_shorter_than_its_content_length_is_sent_and_then_reported(
    make: Callable[[list[bytes]], Iterable[bytes]], chunks: list[bytes], sent: int
) -> None:
    """The server closes the connection then, so that nobody takes it for whole."""

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "4")])
        return make(chunks)

    async def main() -> None:
        server = Server(*REQUEST)
        with pytest.raises(RuntimeError, match=f"{sent} bytes and a Content-Length of 4"):
            await server.serve(application)
        assert END not in server.sent
        assert server.bodies() == chunks

    asyncio.run(main())


@pytest.mark.parametrize("length", ["-1", "many"])
def test_response_with_a_content_length_that_is_none_is_refused(length: str) -> None:
    with pytest.raises(ValueError, match=length):
        answer(responding(b"ab", headers=[("Content-Length", length)]))


def test_response_with_text_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(TypeError, match="with str, not with bytes"):
        answer(responding(b"a", "b"))  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("header", [("X-A", "1\r\nSet-Cookie: a=b"), ("X-\n", "1"), ("X-A", "\0")])
def test_response_header_with_a_line_end_is_refused(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="line end"):
        answer(responding(headers=[header]))


@pytest.mark.parametrize("make", [list, iter], ids=["list", "iterator"])
@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304")]
)
def test_response_that_has_no_body_keeps_its_content_length_and_is_not_iterated_further(
    make: Callable[[Any], Iterable[bytes]], method: str, status: str
) -> None:
    length = [("Content-Length", "1000")]
    taken = []

    def chunks() -> Iterator[bytes]:
        for chunk in (b"", b"a", b"b"):
            taken.append(chunk)
            yield chunk

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, length)(b"")
        return make(chunks())

    [started, end] = answer(application, method=method)
    assert started == start(int(status[:3]), [(b"content-length", b"1000")])
    assert end == END
    assert make is list or taken == [b"", b"a"]


def test_write_to_a_response_without_a_body_sends_its_headers() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Length", "1")])
        write(b"ab")
        write(b"c")
        return []

    assert answer(application, method="HEAD") == [start(headers=[(b"content-length", b"1")]), END]


def test_write_beyond_the_content_length_is_cut_and_raises() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Length", "3")])
        write(b"ab")
        with pytest.raises(ValueError, match="2 bytes beyond the Content-Length of 3"):
            write(b"cde")
        with pytest.raises(ValueError, match="1 bytes beyond"):
            write(b"f")
        return []

    assert answer(application)[1:] == [body(b"ab"), body(b"c"), END]


def test_response_with_content_length_reached_is_not_iterated_further() -> None:
    closing = Closing(b"ab", LookupError("iterated too far"))
    assert answer(closing.application(("Content-Length", "2")))[-1] == END


def test_write_sends_before_what_is_iterated_over() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        write = start_response("200 OK", [("Content-Length", "4")])
        write(b"")
        write(b"a")
        write(b"b")
        return [b"cde"]

    assert answer(application) == [
        start(headers=[(b"content-length", b"4")]),
        body(b"a"),
        body(b"b"),
        body(b"cd"),
        END,
    ]


def test_start_response_with_exc_info_before_the_first_byte_replaces_the_response() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", "1000")])
        yield b""
        start_response("500 Internal Server Error", [("X-Error", "1")], failed())
        yield b"an error page"

    assert answer(application) == [
        start(500, [(b"x-error", b"1")]),
        body(b"an error page"),
        END,
    ]


def test_start_response_with_exc_info_after_the_first_byte_raises_that() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"a"
        start_response("500 Internal Server Error", [], failed())

    with pytest.raises(LookupError, match="its own"):
        answer(application)


@pytest.mark.parametrize("chunk", [b"", b"a"])
def test_start_response_a_second_time_without_exc_info_is_refused(chunk: bytes) -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield chunk
        start_response("200 OK", [])

    with pytest.raises(ValueError, match="a second time"):
        answer(application)


def test_start_response_with_an_empty_exc_info_starts_the_response() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [], sys.exc_info())
        return []

    assert answer(application) == [start(), END]


@pytest.mark.parametrize("chunks", [[], [b"a"]])
def test_application_that_never_starts_its_response_is_told_so(chunks: list[bytes]) -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        return chunks

    with pytest.raises(RuntimeError, match="start_response"):
        answer(application)


# --- How it ends ---------------------------------------------------------------------------


def test_iterable_is_closed_in_the_thread_that_iterated() -> None:
    closing = Closing(b"a", b"b")
    answer(closing.application())
    assert closing.closed == [closing.threads[0]]
    assert closing.closed != [threading.get_ident()]


def test_iterable_that_fails_is_closed_and_its_failure_raised() -> None:
    closing = Closing(b"a", LookupError("its own"))
    with pytest.raises(LookupError, match="its own"):
        answer(closing.application())
    assert len(closing.closed) == 1


def test_application_runs_in_one_thread_and_send_on_the_loop_of_the_caller() -> None:
    threads: dict[str, set[int]] = {"application": set(), "send": set()}

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        threads["application"].add(threading.get_ident())
        start_response("200 OK", [])
        yield b"a"
        threads["application"].add(threading.get_ident())

    async def receive() -> Message:
        return REQUEST[0]

    async def send(message: Message) -> None:
        threads["send"].add(threading.get_ident())

    async def main() -> None:
        await WsgiToAsgi(application)(SCOPE, receive, send)

    asyncio.run(main())
    assert threads["send"] == {threading.get_ident()}
    assert len(threads["application"]) == 1
    assert not threads["application"] & threads["send"]


def test_instance_shows_the_progress_of_its_response() -> None:
    instance = WsgiToAsgiInstance(responding(b"abc", headers=[("Content-Length", "3")]), 7)
    assert instance.duplicate_header_limit == 7
    progress = (
        instance.response_started,
        instance.response_content_length,
        instance.response_start,
    )
    assert progress == (False, None, None)
    sent = asyncio.run(serve(instance, SCOPE, REQUEST))
    assert (instance.response_started, instance.response_content_length) == (True, 3)
    assert instance.response_start == sent[0]
    assert instance.scope is SCOPE


# --- Other protocols ------------------------------------------------------------------------


def test_lifespan_is_confirmed_from_startup_to_shutdown() -> None:
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert answer(responding(), messages, type="lifespan") == [
        {"type": "lifespan.startup.complete"},
        {"type": "lifespan.shutdown.complete"},
    ]


def test_websocket_is_refused_as_the_protocol_has_it() -> None:
    messages = [{"type": "websocket.connect"}]
    [sent] = answer(responding(), messages, type="websocket")
    assert sent == {"type": "websocket.close", "code": 1000}


def test_scope_of_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="telnet"):
        answer(responding(), type="telnet")
