"""The request body on its way to a WSGI application: how far ahead, how it is read, how it ends."""

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from django_asyncbridge.bridge import _wsgi_inbox
from django_asyncbridge.bridge.sync import async_to_sync, sync_to_async
from tests.field_failures.common import loop_turns, until
from tests.support import run_in_thread
from tests.wsgi_support import Environ, Message, Server, Wsgi, request

Main = Callable[[], Any]


def run(main: Main) -> Any:
    return run_in_thread(lambda: asyncio.run(main()))


def reading(read: Callable[[Any], Any], seen: list[Any]) -> Wsgi:
    """Return an application that keeps what `read` returns of its wsgi.input, or raises."""

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            seen.append(read(environ["wsgi.input"]))
        except Exception as error:
            seen.append(error)
        start_response("200 OK", [])
        return [environ.get("CONTENT_LENGTH", "unknown").encode()]

    return application


PIECES = [b"one\ntw", b"", b"o\nthree", b"\n", b"four"]
WHOLE = b"".join(PIECES)


@pytest.mark.parametrize("read_ahead_bytes", [0, 1, 7, 1000])
@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda file: file.read(), WHOLE),
        (lambda file: [file.read(5), file.read(), file.read()], [WHOLE[:5], WHOLE[5:], b""]),
        (lambda file: list(iter(lambda: file.read(2), b"")), None),
        (lambda file: [file.readline(), file.readline(2)], [b"one\n", b"tw"]),
        (lambda file: file.readlines(), WHOLE.splitlines(keepends=True)),
        (list, WHOLE.splitlines(keepends=True)),
        (lambda file: file.readable(), True),
    ],
    ids=["all", "some", "pairs", "readline", "readlines", "iter", "readable"],
)
def test_body_in_pieces_reads_as_a_file(
    read: Callable[[Any], Any], expected: Any, read_ahead_bytes: int
) -> None:
    if expected is None:
        expected = [WHOLE[i : i + 2] for i in range(0, len(WHOLE), 2)]
    seen: list[Any] = []

    async def main() -> None:
        pieces = [request(piece, more_body=True) for piece in PIECES]
        server = Server(*pieces, request(b""))
        await server.serve(reading(read, seen), read_ahead_bytes=read_ahead_bytes)

    run(main)
    assert seen == [expected]


@pytest.mark.parametrize("size", [1000, 65536, 100_000])
def test_body_in_large_pieces_reads_in_small_parts(size: int) -> None:
    seen: list[Any] = []
    pieces = [bytes([number]) * 150_000 for number in range(3)]

    def read(file: Any) -> bytes:
        return b"".join(iter(lambda: file.read(size), b""))

    async def main() -> None:
        server = Server(*(request(piece, more_body=True) for piece in pieces), request(b""))
        await server.serve(reading(read, seen), read_ahead_bytes=1)

    run(main)
    assert seen == [b"".join(pieces)]


@pytest.mark.parametrize(
    ("messages", "length"),
    [
        ([request(b"abc")], b"3"),
        ([request(b"abc", more_body=True), request(b"de")], b"5"),
        ([request(b"")], b"unknown"),
    ],
)
def test_body_that_is_there_gives_the_request_a_content_length(
    messages: list[Message], length: bytes
) -> None:
    async def main() -> list[bytes]:
        server = Server(*messages)
        await server.serve(reading(lambda file: file.read(), []))
        return server.bodies()

    assert run(main) == [length]


def test_body_larger_than_is_read_ahead_has_no_content_length_and_an_end() -> None:
    seen: list[Any] = []

    async def main() -> list[bytes]:
        server = Server(request(b"abc", more_body=True), request(b"de"))
        await server.serve(reading(lambda file: file.read(), seen), read_ahead_bytes=3)
        return server.bodies()

    assert run(main) == [b"unknown"]
    assert seen == [b"abcde"]


def test_application_is_called_once_a_small_body_is_there() -> None:
    called = threading.Event()

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        called.set()
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    async def main() -> None:
        server = Server(request(b"a", more_body=True))
        serving = asyncio.create_task(server.serve(application))
        await loop_turns(20)
        assert not called.is_set()
        server.put(b"b", more_body=False)
        await serving
        assert server.bodies() == [b"ab"]

    run(main)


def test_application_is_called_when_a_small_body_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that a client which waits for the response before it goes on gets one."""
    monkeypatch.setattr(_wsgi_inbox, "_PATIENCE_SECONDS", 0)

    def echo(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        return iter(environ["wsgi.input"].read1, b"")

    async def main() -> None:
        server = Server(request(b"a", more_body=True))
        serving = asyncio.create_task(server.serve(echo))
        await server.until_sent(2)
        server.put(b"b")
        await server.until_sent(3)
        server.put(b"c", more_body=False)
        await serving
        assert server.bodies() == [b"a", b"b", b"c"]

    run(main)


def test_body_is_received_no_further_than_it_may_be_ahead() -> None:
    reached, go_on = threading.Event(), threading.Event()

    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        file = environ["wsgi.input"]
        reached.set()
        assert go_on.wait(10)
        start_response("200 OK", [])
        return [str(len(file.read())).encode()]

    async def main() -> None:
        pieces = [request(b"x" * 10, more_body=True) for _ in range(50)]
        server = Server(*pieces, request(b""))
        serving = asyncio.create_task(server.serve(application, read_ahead_bytes=25))
        await until(reached)
        await loop_turns(20)
        assert server.received == 3
        go_on.set()
        await serving
        assert server.bodies() == [b"500"]

    run(main)


def test_body_that_comes_late_is_waited_for_without_blocking_the_loop() -> None:
    asked = threading.Event()
    seen: list[Any] = []

    def read(file: Any) -> bytes:
        asked.set()
        data: bytes = file.read()
        return data

    async def main() -> None:
        server = Server(request(b"a", more_body=True))
        serving = asyncio.create_task(server.serve(reading(read, seen), read_ahead_bytes=1))
        await until(asked)
        server.put(b"b", more_body=False)
        await serving

    run(main)
    assert seen == [b"ab"]


def test_client_that_leaves_during_the_body_fails_the_read_and_is_sent_nothing() -> None:
    asked = threading.Event()
    seen: list[Any] = []

    def read(file: Any) -> bytes:
        data: bytes = file.read(1)
        asked.set()
        return data + bytes(file.read())

    async def main() -> None:
        server = Server(request(b"ab", more_body=True))
        serving = asyncio.create_task(server.serve(reading(read, seen), read_ahead_bytes=1))
        await until(asked)
        server.leave()
        await serving
        assert server.sent == []

    run(main)
    [error] = seen
    assert isinstance(error, ConnectionResetError)


def test_client_that_leaves_during_the_body_ends_an_application_that_fails_of_it_quietly() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raise LookupError("unreadable") from error
        raise AssertionError("read")

    async def main() -> None:
        server = Server(request(b"ab", more_body=True))
        server.leave()
        await server.serve(application, read_ahead_bytes=0)
        assert server.sent == []

    run(main)


def test_client_that_leaves_does_not_hide_an_error_of_the_application() -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        with pytest.raises(ConnectionResetError):
            environ["wsgi.input"].read()
        raise LookupError("its own")

    async def main() -> None:
        server = Server(request(b"ab", more_body=True))
        server.leave()
        with pytest.raises(LookupError, match="its own"):
            await server.serve(application, read_ahead_bytes=0)

    run(main)


@pytest.mark.parametrize("read_ahead_bytes", [0, 1000])
def test_receive_that_fails_during_the_body_raises_what_it_raised(read_ahead_bytes: int) -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.input"].read()
        raise AssertionError("read")

    async def main() -> None:
        server = Server(request(b"ab", more_body=True), {"type": "http.surprise"})
        with pytest.raises(ValueError, match=r"http\.surprise"):
            await server.serve(application, read_ahead_bytes=read_ahead_bytes)

    run(main)


def test_body_read_in_async_code_is_there_or_tells_what_to_do() -> None:
    """As in an async view of Flask: the event loop that receives cannot wait for itself."""
    seen: list[Any] = []

    async def view(file: Any) -> None:
        seen.append(file.read(2))
        with pytest.raises(RuntimeError, match="read_ahead_bytes"):
            file.read(1)

    async def main() -> None:
        server = Server(request(b"ab", more_body=True))
        await server.serve(reading(async_to_sync(view), seen), read_ahead_bytes=2)

    run(main)
    assert seen == [b"ab", None]


def test_body_is_read_in_a_thread_of_the_applications_own() -> None:
    seen: list[Any] = []

    asked = threading.Event()

    def read(file: Any) -> bytes:
        def in_thread() -> bytes:
            first: bytes = file.read(2)
            asked.set()
            return first + bytes(file.read())

        return run_in_thread(in_thread)

    async def main() -> None:
        server = Server(request(b"ab", more_body=True))
        serving = asyncio.create_task(server.serve(reading(read, seen), read_ahead_bytes=2))
        await until(asked)
        server.put(b"c", more_body=False)
        await serving

    run(main)
    assert seen == [b"abc"]


def test_body_read_after_its_request_is_refused() -> None:
    seen: list[Any] = []

    async def main() -> None:
        server = Server(request(b"ab", more_body=True))
        await server.serve(reading(lambda file: file, seen), read_ahead_bytes=0)
        with pytest.raises(ValueError, match="after the end of its request"):
            await asyncio.to_thread(seen[0].read)

    run(main)


@pytest.mark.parametrize("read_ahead_bytes", [0, 1000])
def test_receive_may_use_the_thread_of_the_request(read_ahead_bytes: int) -> None:
    """Of a middleware: that thread waits for the message meanwhile."""
    seen: list[Any] = []

    @sync_to_async
    def noted(message: Message) -> Message:
        return message

    async def main() -> None:
        server = Server(request(b"ab", more_body=True), request(b"c"))
        inner = server.receive

        async def receive() -> Message:
            return await noted(await inner())

        server.receive = receive  # type: ignore[method-assign]  # as a middleware does
        await server.serve(
            reading(lambda file: file.read(), seen), read_ahead_bytes=read_ahead_bytes
        )

    run(main)
    assert seen == [b"abc"]
    run_in_thread(async_to_sync(main))
    assert seen == [b"abc"] * 2
