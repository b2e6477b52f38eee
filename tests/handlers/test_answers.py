"""`send_response`: the messages, the threads, back-pressure, and that every iterator is closed however it ends."""

import asyncio
import contextvars
import gzip
import logging
import os
import threading
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from django.core import signals
from django.core.handlers.asgi import ASGIHandler
from django.http import (
    HttpResponse,
    HttpResponseNotModified,
    HttpResponseRedirect,
    StreamingHttpResponse,
)
from django.http.response import HttpResponseBase
from django.middleware.gzip import GZipMiddleware
from django.template.response import ContentNotRenderedError, SimpleTemplateResponse

from django_asyncbridge.bridge.sync import (
    ThreadSensitiveContext,
    async_to_sync,
    cancelled,
    sync_to_async,
)
from django_asyncbridge.handlers import answers
from django_asyncbridge.handlers.answers import send_response
from tests.bridge import LIMIT_SECONDS, wait
from tests.handlers.requests import request_of

var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
here = sync_to_async(threading.current_thread)


@pytest.fixture(autouse=True)
def nobody_hears_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers of Django's look at the connections of this thread, which are those of other tests."""
    monkeypatch.setattr(signals.request_finished, "receivers", [])


class Client:
    """Takes the messages; leaves, or stops reading, at the one with a number."""

    def __init__(self, leaves_at: int | None = None, stops_at: int | None = None) -> None:
        self.messages: list[Any] = []
        self.leaves_at, self.stops_at = leaves_at, stops_at
        self.stopped = asyncio.Event()
        self.go_on = asyncio.Event()

    async def send(self, message: Any) -> None:
        if len(self.messages) == self.leaves_at:
            raise OSError("the client has left")
        if len(self.messages) == self.stops_at:
            self.stopped.set()
            await self.go_on.wait()
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def parts(self) -> list[bytes]:
        return [message["body"] for message in self.messages if message.get("more_body")]


class Source:
    """Generators of both kinds, and how far they got."""

    def __init__(
        self,
        *parts: Any,
        error_at: int | None = None,
        error_at_close: Exception | None = None,
    ) -> None:
        self.items, self.error_at, self.error_at_close = (
            parts or (b"a", b"b", b"c"),
            error_at,
            error_at_close,
        )
        self.begun = False
        self.made: list[Any] = []
        self.threads: list[threading.Thread] = []
        self.closed_in: list[threading.Thread] = []

    def _step(self, number: int, part: Any) -> Any:
        if number == self.error_at:
            raise LookupError(number)
        self.threads.append(threading.current_thread())
        self.made.append(part)
        return part

    def _close(self) -> None:
        self.closed_in.append(threading.current_thread())
        if self.error_at_close is not None:
            raise self.error_at_close

    def parts(self) -> Iterator[Any]:
        self.begun = True
        try:
            for number, part in enumerate(self.items):
                yield self._step(number, part)
        finally:
            self._close()

    async def aparts(self) -> AsyncIterator[Any]:
        self.begun = True
        try:
            for number, part in enumerate(self.items):
                await asyncio.sleep(0)
                yield self._step(number, part)
        finally:
            self._close()

    def of(self, kind: str) -> Any:
        return self.parts() if kind == "sync" else self.aparts()


both = pytest.mark.parametrize("kind", ["sync", "async"])


def run(main: Callable[[], Any]) -> Any:
    """Run a test in a request's thread context, within the limit."""

    async def limited() -> Any:
        async with asyncio.timeout(LIMIT_SECONDS), ThreadSensitiveContext():
            return await main()

    return asyncio.run(limited())


def sent(response: HttpResponseBase) -> list[Any]:
    """Send a response, and return the messages."""

    async def main() -> list[Any]:
        client = Client()
        await send_response(response, client.send, {})
        return client.messages

    messages: list[Any] = run(main)
    return messages


def sent_by_django(response: HttpResponseBase) -> list[Any]:
    """Have Django's own handler send a response, and return the messages."""

    async def main() -> list[Any]:
        client = Client()
        handler = ASGIHandler.__new__(ASGIHandler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            await handler.send_response(response, client.send)
        return client.messages

    messages: list[Any] = run(main)
    return messages


def is_whole(message: Any) -> dict[str, Any]:
    """Return a message with all its keys."""
    return (
        {"body": b"", "more_body": False, **message}
        if message["type"] == "http.response.body"
        else message
    )


# --- As Django ----------------------------------------------------------------------


def with_cookies() -> HttpResponse:
    response = HttpResponse("x", headers={"X-MiXed-Case": "1", "x-lower": b"2", "X-Number": 3})
    response.set_cookie("first", "1", max_age=60, secure=True, samesite="Lax")
    response.set_signed_cookie("second", "two words")
    response.delete_cookie("third")
    response["X-Latin"] = "caf\u00e9"
    response["X-Encoded"] = "\u2603"
    return response


class OwnIteration(StreamingHttpResponse):
    """Makes its parts in a way of its own."""

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        yield b"own"
        yield b"iteration"


class OwnContent(StreamingHttpResponse):
    """Makes its parts in a way of its own, of either kind."""

    @property
    def streaming_content(self) -> Any:
        inner = vars(StreamingHttpResponse)["streaming_content"].fget(self)
        return self._awrapped(inner) if self.is_async else (b"<" + part + b">" for part in inner)

    @streaming_content.setter
    def streaming_content(self, value: Any) -> None:
        self._set_streaming_content(value)  # type: ignore[attr-defined]

    async def _awrapped(self, inner: Any) -> AsyncIterator[bytes]:
        async for part in inner:
            yield b"<" + part + b">"


class Counter:
    """An iterator of either kind that is no generator."""

    def __init__(self) -> None:
        self.left = 3

    def __iter__(self) -> "Counter":
        return self

    def __next__(self) -> int:
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return self.left


class AsyncCounter:
    def __init__(self) -> None:
        self.left = 3

    def __aiter__(self) -> "AsyncCounter":
        return self

    async def __anext__(self) -> int:
        if self.left == 0:
            raise StopAsyncIteration
        self.left -= 1
        return self.left


mixed = (b"bytes", "text \u00e9", "", b"", memoryview(b"view"), 17, b"x" * 65536, b"y" * 200_000)
RESPONSES: dict[str, Callable[[], HttpResponseBase]] = {
    "empty": HttpResponse,
    "small": lambda: HttpResponse("caf\u00e9", status=201, charset="latin-1"),
    "one-piece": lambda: HttpResponse(b"x" * 65536),
    "two-pieces": lambda: HttpResponse(b"x" * 65537),
    "large": lambda: HttpResponse(bytes(range(256)) * 1000),
    "of-iterator": lambda: HttpResponse(iter(["a", b"b"])),
    "not-modified": HttpResponseNotModified,
    "redirect": lambda: HttpResponseRedirect("/elsewhere/"),
    "cookies": with_cookies,
    "sync": lambda: StreamingHttpResponse(Source(*mixed).parts(), charset="latin-1"),
    "async": lambda: StreamingHttpResponse(Source(*mixed).aparts(), charset="latin-1"),
    "list": lambda: StreamingHttpResponse([b"a", "b"]),
    "nothing": StreamingHttpResponse,
    "counter": lambda: StreamingHttpResponse(Counter()),
    "async-counter": lambda: StreamingHttpResponse(AsyncCounter()),
    "own-iteration": lambda: OwnIteration([b"not", b"these"]),
    "own-content": lambda: OwnContent([b"a", "b"]),
    "own-async-content": lambda: OwnContent(Source().aparts()),
}


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES)
def test_send_response_sends_the_messages_that_djangos_handler_sends(
    response: Callable[[], HttpResponseBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Cookies say when they expire, to the second.
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    ours, theirs = sent(response()), sent_by_django(response())
    assert [is_whole(message) for message in ours] == [is_whole(message) for message in theirs]


@pytest.mark.parametrize("kind", ["whole", "sync", "async"])
def test_send_response_with_a_header_that_cannot_be_encoded_sends_nothing(kind: str) -> None:
    source = Source()
    response = HttpResponse() if kind == "whole" else StreamingHttpResponse(source.of(kind))
    response.headers._store["x-bad"] = ("X-Bad", "\u2603")

    async def main() -> None:
        client = Client()
        with pytest.raises(UnicodeEncodeError):
            await send_response(response, client.send, {})
        assert client.messages == []
        assert source.made == []

    run(main)
    response.close()


def test_send_response_takes_headers_that_are_bytes() -> None:
    class Raw(HttpResponse):
        def items(self) -> Any:
            return [(b"X-Raw", b"\xff")]

    assert sent(Raw())[0]["headers"] == [(b"X-Raw", b"\xff")]


def test_send_response_of_a_template_that_is_not_rendered_sends_nothing() -> None:
    async def main() -> None:
        client = Client()
        with pytest.raises(ContentNotRenderedError):
            await send_response(SimpleTemplateResponse("any.html"), client.send, {})
        assert client.messages == []

    run(main)


# --- Where, when, how far --------------------------------------------------------------


def test_send_response_makes_sync_parts_in_the_home_thread_and_async_ones_on_the_loop() -> None:
    async def main() -> None:
        for kind, thread in (("sync", await here()), ("async", threading.current_thread())):
            source = Source()
            await send_response(StreamingHttpResponse(source.of(kind)), Client().send, {})
            assert source.threads == [thread] * 3
            assert source.closed_in == [thread]

    run(main)


def test_send_response_sends_a_sync_part_as_soon_as_it_is_made() -> None:
    taken = [threading.Event() for _ in range(40)]

    def parts() -> Iterator[bytes]:
        for event in taken:
            yield b"part"
            wait(event)

    class Taking(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body"):
                taken[len(self.parts) - 1].set()

    async def main() -> None:
        client = Taking()
        await send_response(StreamingHttpResponse(parts()), client.send, {})
        assert client.parts == [b"part"] * 40

    run(main)


def test_send_response_sends_an_async_part_before_the_next_is_made() -> None:
    async def main() -> None:
        client, made = Client(), []

        async def parts() -> AsyncIterator[bytes]:
            for number in range(3):
                made.append(len(client.parts))
                yield b"%d" % number

        await send_response(StreamingHttpResponse(parts()), client.send, {})
        assert made == [0, 1, 2]

    run(main)


@pytest.mark.parametrize(("kind", "most_ahead"), [("sync", answers._PARTS_AHEAD), ("async", 0)])
@pytest.mark.parametrize("stops_at", [0, 1, 2, 30, 60])
def test_send_response_to_a_client_that_stops_reading_makes_no_more_than_the_look_ahead(
    kind: str, most_ahead: int, stops_at: int
) -> None:
    async def main() -> None:
        source, client = Source(*[b"x"] * 200), Client(stops_at=stops_at)
        response = StreamingHttpResponse(source.of(kind))
        task = asyncio.create_task(send_response(response, client.send, {}))
        await client.stopped.wait()
        for _ in range(20):
            # The thread has come to the end of what it does.
            await here()
        # The start message, then one for each part.
        assert len(source.made) - stops_at <= most_ahead
        client.go_on.set()
        await task
        assert client.body == b"x" * 200

    run(main)


def test_send_response_shows_sync_parts_the_context_variables_of_the_request() -> None:
    def parts() -> Iterator[str]:
        yield var.get()
        var.set("changed")
        yield var.get()

    async def main() -> None:
        var.set("of the request")
        client = Client()
        await send_response(StreamingHttpResponse(parts()), client.send, {})
        assert client.parts == [b"of the request", b"changed"]
        assert var.get() == "changed"

    run(main)


# --- Endings -----------------------------------------------------------------------


@both
@pytest.mark.parametrize("leaves_at", range(5))
def test_send_response_whose_client_leaves_closes_the_iterator_and_raises(
    kind: str, leaves_at: int
) -> None:
    async def main() -> None:
        source, client = Source(), Client(leaves_at)
        response = StreamingHttpResponse(source.of(kind))
        with pytest.raises(OSError, match="has left"):
            await send_response(response, client.send, {})
        assert len(client.messages) == leaves_at
        # One that was not begun has nothing to close.
        home = await here() if kind == "sync" else threading.current_thread()
        assert source.closed_in == ([home] if leaves_at else [])

    run(main)


@both
@pytest.mark.parametrize("error_at", [0, 1, 2])
def test_send_response_raises_what_the_iterator_raises_after_the_parts_before(
    kind: str, error_at: int
) -> None:
    async def main() -> None:
        source, client = Source(error_at=error_at), Client()
        with pytest.raises(LookupError) as raised:
            await send_response(StreamingHttpResponse(source.of(kind)), client.send, {})
        assert raised.value.args == (error_at,)
        assert raised.traceback[-1].name == "_step"
        assert raised.traceback[-2].name == ("parts" if kind == "sync" else "aparts")
        assert client.parts == [b"a", b"b"][:error_at]
        assert len(source.closed_in) == 1
        # The server is to see that the body is not complete.
        assert all(message.get("more_body", True) for message in client.messages)

    run(main)


@both
@pytest.mark.parametrize("leaves_at", [2, None])
def test_send_response_raises_what_the_iterator_raises_at_its_close(
    kind: str, leaves_at: int | None
) -> None:
    async def main() -> None:
        source = Source(error_at_close=LookupError("at close"))
        with pytest.raises(LookupError, match="at close") as raised:
            await send_response(StreamingHttpResponse(source.of(kind)), Client(leaves_at).send, {})
        if leaves_at:
            assert isinstance(raised.value.__context__, GeneratorExit | OSError)

    run(main)


def part_that_cannot_be_encoded() -> Any:
    return "\u2603"


@both
def test_send_response_with_a_part_that_cannot_be_encoded_closes_the_iterator(kind: str) -> None:
    async def main() -> None:
        source = Source(part_that_cannot_be_encoded())
        response = StreamingHttpResponse(source.of(kind), charset="latin-1")
        with pytest.raises(UnicodeEncodeError):
            await send_response(response, Client().send, {})
        assert len(source.closed_in) == 1

    run(main)


@both
@pytest.mark.parametrize("turns", range(24))
def test_send_response_cancelled_at_any_time_ends_cancelled_with_the_iterator_closed(
    kind: str, turns: int
) -> None:
    async def main() -> None:
        source, client = Source(*[b"x"] * 1000), Client()
        response = StreamingHttpResponse(source.of(kind))
        task = asyncio.create_task(send_response(response, client.send, {}))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        home = await here() if kind == "sync" else threading.current_thread()
        assert source.closed_in == ([home] if source.begun else [])
        assert {"type": "http.response.body"} not in client.messages

    run(main)


@both
def test_send_response_cancelled_whose_iterator_fails_at_its_close_ends_cancelled_and_logs_it(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        source, client = Source(error_at_close=LookupError("at close")), Client(stops_at=2)
        response = StreamingHttpResponse(source.of(kind))
        task = asyncio.create_task(send_response(response, client.send, {}))
        await client.stopped.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as raised:
            await task
        assert raised.value.__cause__ is source.error_at_close
        assert task.cancelled()

    run(main)
    (record,) = caplog.records
    assert (record.levelno, record.name) == (logging.WARNING, "django_asyncbridge.handlers")
    assert record.getMessage().endswith("parts raised after its response was cancelled")


@pytest.mark.parametrize("how", ["cancelled", "left"])
def test_send_response_that_ends_reaches_what_a_sync_iterator_waits_for_ahead(how: str) -> None:
    """It waits for an event that never comes; the client has stopped reading meanwhile."""
    waiting = threading.Event()
    closed: list[bool] = []

    async def never() -> bytes:
        waiting.set()
        return bytes(await asyncio.get_running_loop().create_future())

    def parts() -> Iterator[bytes]:
        try:
            yield from [b"first", b"second"]
            async_to_sync(never)()
        finally:
            closed.append(cancelled())

    class Leaving(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message.get("body") == b"second":
                assert await asyncio.to_thread(waiting.wait, LIMIT_SECONDS)
                raise OSError("the client has left")

    async def main() -> None:
        client = Client(stops_at=2) if how == "cancelled" else Leaving()
        task = asyncio.create_task(send_response(StreamingHttpResponse(parts()), client.send, {}))
        if how == "cancelled":
            await client.stopped.wait()
            assert await asyncio.to_thread(waiting.wait, LIMIT_SECONDS)
            task.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else OSError):
            await task
        assert closed == [True]

    run(main)


def test_send_response_cancelled_while_a_part_is_made_names_the_iterator_that_fails_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waiting = threading.Event()

    async def never() -> bytes:
        waiting.set()
        return bytes(await asyncio.get_running_loop().create_future())

    def failing() -> Iterator[bytes]:
        try:
            yield async_to_sync(never)()
        finally:
            raise LookupError("at close")

    async def main() -> None:
        response = StreamingHttpResponse(failing())
        task = asyncio.create_task(send_response(response, Client().send, {}))
        assert await asyncio.to_thread(waiting.wait, LIMIT_SECONDS)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert ".failing raised after its iteration was cancelled" in record.getMessage()


@both
def test_send_response_whose_coroutine_is_closed_just_ends(kind: str) -> None:
    """As the event loop of a program that ends may leave it."""

    async def stop(message: Any) -> None:
        await asyncio.sleep(0)

    response = StreamingHttpResponse(Source().of(kind))
    sending: Any = send_response(response, stop, {})
    sending.send(None)
    sending.close()
    response.close()


# --- What else is closed --------------------------------------------------------------


class Closable(Counter):
    """Counts how often it is closed; its own iterator, or made by ``iter()``."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class MakesIterator:
    def __init__(self) -> None:
        self.iterator = Closable()

    def __iter__(self) -> Closable:
        return self.iterator


class AsyncClosable(AsyncCounter):
    def __init__(self) -> None:
        super().__init__()
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("leaves_at", [2, None])
def test_send_response_closes_an_iterator_once_together_with_the_response(
    leaves_at: int | None,
) -> None:
    async def main() -> None:
        given, made, agiven = Closable(), MakesIterator(), AsyncClosable()
        for content in (given, made, agiven):
            response = StreamingHttpResponse(content)
            try:
                await send_response(response, Client(leaves_at).send, {})
            except OSError:
                assert leaves_at
            await sync_to_async(response.close)()
        assert (given.closed, made.iterator.closed, agiven.closed) == (1, 1, 1)

    run(main)


def test_send_response_closes_async_iterators_that_were_never_begun() -> None:
    async def main() -> None:
        content = AsyncClosable()
        with pytest.raises(OSError, match="has left"):
            await send_response(StreamingHttpResponse(content), Client(0).send, {})
        assert content.closed == 1

    run(main)


# --- Below middlewares ---------------------------------------------------------------


async def shout(parts: Any) -> AsyncIterator[bytes]:
    """Stands for a project's middleware."""
    async for part in parts:  # pragma: no branch  # its clients never stay to the end
        yield part.upper()


def zipped(response: StreamingHttpResponse) -> StreamingHttpResponse:
    request = request_of("/")
    request.META["HTTP_ACCEPT_ENCODING"] = "gzip"
    GZipMiddleware(lambda _: response).process_response(request, response)
    return response


@both
def test_send_response_of_a_compressed_stream_sends_all_of_it(kind: str) -> None:
    source = Source(*[b"some text " * 100] * 30)

    async def main() -> None:
        client = Client()
        await send_response(zipped(StreamingHttpResponse(source.of(kind))), client.send, {})
        assert gzip.decompress(client.body) == b"some text " * 3000
        assert len(source.closed_in) == 1

    run(main)


def in_layers(content: Any) -> StreamingHttpResponse:
    response = StreamingHttpResponse(content)
    response.streaming_content = shout(response.streaming_content)
    return zipped(response)


@pytest.mark.parametrize(
    "make", [lambda content: zipped(StreamingHttpResponse(content)), in_layers]
)
@pytest.mark.parametrize("how", ["left", "cancelled"])
def test_send_response_closes_what_middlewares_have_wrapped_before_it_ends(
    make: Callable[[Any], StreamingHttpResponse], how: str
) -> None:
    async def main() -> None:
        # Some versions of Django send what is compressed only when there is enough of it.
        source = Source(*[os.urandom(60_000)] * 30)
        client = Client(leaves_at=5) if how == "left" else Client(stops_at=5)
        task = asyncio.create_task(send_response(make(source.aparts()), client.send, {}))
        closed_at_end: list[int] = []
        task.add_done_callback(lambda _: closed_at_end.append(len(source.closed_in)))
        if how == "cancelled":
            await client.stopped.wait()
            task.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancelled" else OSError):
            await task
        assert closed_at_end == [1]

    run(main)


def test_send_response_leaves_open_what_a_projects_own_generator_merely_knows() -> None:
    """A stream that several responses take turns with, say."""

    async def main() -> None:
        source = Source(b"a", b"b", b"c", b"d")
        shared = source.aparts()

        async def two() -> AsyncIterator[bytes]:
            yield await anext(shared)
            yield await anext(shared)

        for expected in ([b"a", b"b"], [b"c", b"d"]):
            client = Client()
            await send_response(StreamingHttpResponse(two()), client.send, {})
            assert client.parts == expected
        assert source.closed_in == []
        await shared.aclose()  # type: ignore[attr-defined]

    run(main)


class Closing:
    """An async iterator that notes its name when it is closed, and then raises."""

    def __init__(self, name: str, closed: list[str]) -> None:
        self.name, self.closed = name, closed

    async def aclose(self) -> None:
        self.closed.append(self.name)
        raise LookupError(self.name)


def test_close_closes_the_outermost_first_and_the_others_although_it_raises() -> None:
    closed: list[str] = []
    iterators = [Closing("outer", closed), object(), Closing("inner", closed)]
    with pytest.raises(LookupError, match="inner") as raised:
        asyncio.run(answers._close(iterators))
    assert closed == ["outer", "inner"]
    assert repr(raised.value.__context__) == "LookupError('outer')"
