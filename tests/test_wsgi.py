"""A WSGI application under an ASGI server: the environ it gets, the messages it sends, how it ends."""

import asyncio
import io
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import pytest

from django_asyncbridge.bridge.wsgi import WsgiToAsgi, WsgiToAsgiInstance

Environ = dict[str, Any]
Message = dict[str, Any]
Wsgi = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "query_string": b"",
    "headers": [],
}
REQUEST: list[Message] = [{"type": "http.request"}]


def answer(
    application: Wsgi,
    messages: Iterable[Message] = REQUEST,
    *,
    duplicate_header_limit: int = 100,
    **scope: Any,
) -> list[Message]:
    """Serve one scope and return what was sent."""
    return asyncio.run(
        serve(WsgiToAsgi(application, duplicate_header_limit), {**SCOPE, **scope}, messages)
    )


async def serve(
    application: Callable[..., Any], scope: dict[str, Any], messages: Iterable[Message]
) -> list[Message]:
    left, sent = list(messages), []

    async def receive() -> Message:
        return left.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await application(scope, receive, send)
    assert left == []
    return sent


def environ_of(
    messages: Iterable[Message] = REQUEST, *, duplicate_header_limit: int = 100, **scope: Any
) -> Environ:
    """Return the environ that the application gets for a request."""
    seen: list[Environ] = []

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        seen.append(environ)
        start_response("200 OK", [])
        return []

    answer(application, messages, duplicate_header_limit=duplicate_header_limit, **scope)
    return seen[0]


def start(status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


END = {"type": "http.response.body"}


def responding(
    *chunks: bytes, status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()
) -> Wsgi:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, list(headers))
        return chunks

    return application


class Closing:
    """An iterable of chunks that notes whether, and in which thread, it was closed."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self.chunks = iter(chunks)
        self.closed: list[int] = []
        self.threads: list[int] = []

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.threads.append(threading.get_ident())
        chunk = next(self.chunks)
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def close(self) -> None:
        self.closed.append(threading.get_ident())

    def application(self, *headers: tuple[str, str]) -> Wsgi:
        def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
            start_response("200 OK", list(headers))
            return self

        return application


def failed() -> Any:
    """Return what sys.exc_info() does where an application handles its own failure."""
    try:
        raise LookupError("its own")
    except LookupError:
        return sys.exc_info()


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
        (4, [b"ab"], [b"ab"]),
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


def test_iterable_is_closed_when_the_client_has_gone() -> None:
    closing = Closing(b"a", b"b")

    async def receive() -> Message:
        return REQUEST[0]

    async def send(message: Message) -> None:
        raise ConnectionResetError

    async def main() -> None:
        await WsgiToAsgi(closing.application())(SCOPE, receive, send)

    with pytest.raises(ConnectionResetError):
        asyncio.run(main())
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
    assert (instance.response_started, instance.response_content_length) == (False, None)
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
