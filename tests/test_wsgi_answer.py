"""The answer of a WSGI application on its way: its thread, back-pressure, clients that leave, cancellation."""

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from django_asyncbridge.bridge import _state, _wsgi_inbox, wsgi
from django_asyncbridge.bridge.sync import (
    WorkersBusy,
    async_to_sync,
    cancelled,
    sync_to_async,
)
from django_asyncbridge.bridge.wsgi import WsgiToAsgi, WsgiToAsgiInstance
from tests.field_failures.common import HOMES, Tracked, loop_turns, until
from tests.support import run_in_thread
from tests.wsgi_support import (
    DISCONNECT,
    END,
    REQUEST,
    SCOPE,
    Environ,
    Message,
    Server,
    Wsgi,
    body,
    request,
    responding,
    start,
)

Main = Callable[[], Any]
StartResponse = Callable[..., Any]


def run(main: Main) -> Any:
    return run_in_thread(lambda: asyncio.run(main()))


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each request listen for the client's leaving from its start."""
    monkeypatch.setattr(wsgi, "_LISTEN_AFTER_SECONDS", 0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Have requests wait for one thread."""
    pool = _state.request_workers
    maximum, idle_seconds, wait_seconds = pool.maximum, pool.idle_seconds, pool.wait_seconds
    pool.configure(maximum=1, idle_seconds=60, wait_seconds=10)
    yield
    pool.configure(maximum=maximum, idle_seconds=idle_seconds, wait_seconds=wait_seconds)


class Endless:
    """An iterable without an end, which notes what becomes of it."""

    def __init__(self) -> None:
        self.asked = 0
        self.threads: set[int] = set()
        self.closed = threading.Event()
        self.was_cancelled = False

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return self

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self.asked += 1
        self.threads.add(threading.get_ident())
        return b"x"

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.was_cancelled = cancelled()
        # The clean-up may wait for coroutines.
        async_to_sync(loop_turns)(1)
        self.closed.set()


# --- The thread -------------------------------------------------------------------


def test_requests_at_once_run_in_threads_of_their_own() -> None:
    barrier = threading.Barrier(4)

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        barrier.wait(10)
        start_response("200 OK", [])
        return [str(threading.get_ident()).encode()]

    async def main() -> None:
        asgi = WsgiToAsgi(application)
        servers = [Server(*REQUEST) for _ in range(4)]
        await asyncio.gather(*(server.serve(asgi) for server in servers))
        assert len({server.bodies()[0] for server in servers}) == 4

    run(main)


@pytest.mark.parametrize("home", HOMES)
def test_thread_sensitive_code_below_the_application_runs_in_its_thread(home: str) -> None:
    threads: set[int] = set()
    note = sync_to_async(lambda: threads.add(threading.get_ident()))

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        threads.add(threading.get_ident())
        async_to_sync(note)()
        start_response("200 OK", [])
        async_to_sync(note)()
        yield b"a"
        async_to_sync(note)()

    async def main() -> None:
        server = Server(*REQUEST)
        if home != "shared-thread":
            await note()
        await server.serve(application)
        assert server.bodies() == [b"a"]

    HOMES[home](main)
    assert len(threads) == 1


def test_send_may_use_the_thread_of_the_request() -> None:
    """Of a middleware: that thread waits until the message is sent."""
    note = sync_to_async(lambda _message: threading.get_ident())

    async def main() -> None:
        server = Server(*REQUEST)
        threads = []

        async def send(message: Message) -> None:
            threads.append(await note(message))
            await server.send(message)

        await WsgiToAsgi(iterating(b"a", b"b"))(SCOPE, server.receive, send)
        assert len(set(threads[:3])) == 1
        assert server.bodies() == [b"a", b"b"]

    run(main)


def iterating(*chunks: bytes) -> Wsgi:
    """Return an application that answers with an iterable, neither list nor generator, that has a close()."""

    class Chunks:
        def __iter__(self) -> Iterator[bytes]:
            return iter(chunks)

        def close(self) -> None: ...

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Chunks()

    return application


def test_context_variables_are_those_of_the_request_and_come_back() -> None:
    async def main() -> None:
        variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
        variable.set("request")

        def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            yield variable.get().encode()
            variable.set("application")

        server = Server(*REQUEST)
        await server.serve(application)
        assert server.bodies() == [b"request"]
        assert variable.get() == "application"

    run(main)


@pytest.mark.usefixtures("one_thread")
def test_request_that_gets_no_thread_in_time_is_answered_503(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running, release = threading.Event(), threading.Event()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        running.set()
        assert release.wait(10)
        start_response("200 OK", [])
        return [b"a"]

    async def main() -> None:
        first, second = Server(*REQUEST), Server(*REQUEST)
        serving = asyncio.create_task(first.serve(application))
        await until(running)
        await second.serve(application)
        release.set()
        await serving
        assert first.bodies() == [b"a"]
        assert second.sent == [
            start(503, [(b"content-type", b"text/plain"), (b"retry-after", b"1")]),
            {"type": "http.response.body", "body": b"Service Unavailable"},
        ]

    _state.request_workers.configure(maximum=1, idle_seconds=60, wait_seconds=0.01)
    run(main)
    assert "Service Unavailable: GET /: no worker of the pool" in caplog.text


def test_lack_of_threads_below_the_application_is_its_own_error() -> None:
    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        raise WorkersBusy("of another pool")

    async def main() -> None:
        with pytest.raises(WorkersBusy, match="of another pool"):
            await Server(*REQUEST).serve(application)

    run(main)


# --- Back-pressure ------------------------------------------------------------------


def test_next_piece_is_asked_for_when_the_one_before_was_taken() -> None:
    endless = Endless()

    async def main() -> None:
        taken: asyncio.Queue[Message] = asyncio.Queue()
        go_on = asyncio.Semaphore(0)

        async def send(message: Message) -> None:
            taken.put_nowait(message)
            await go_on.acquire()

        serving = asyncio.create_task(WsgiToAsgi(endless)(SCOPE, Server(*REQUEST).receive, send))
        for count, expected in enumerate([start(), body(b"x"), body(b"x"), body(b"x")]):
            assert await taken.get() == expected
            await loop_turns()
            assert endless.asked == max(count, 1)
            go_on.release()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(main)


@pytest.mark.usefixtures("one_thread")
def test_list_is_sent_when_its_thread_is_free_again() -> None:
    """A client that takes its time keeps no thread: there is only one."""

    async def main() -> None:
        server, go_on = Server(*REQUEST), asyncio.Event()

        async def send(message: Message) -> None:
            await server.send(message)
            await go_on.wait()

        application = WsgiToAsgi(responding(b"a", b"b"))
        serving = asyncio.create_task(application(SCOPE, server.receive, send))
        await server.until_sent(1)
        other = Server(*REQUEST)
        await other.serve(application)
        assert other.bodies() == [b"a", b"b"]
        go_on.set()
        await serving
        assert server.sent == [start(), body(b"a"), body(b"b"), END]

    run(main)


def test_iterable_is_closed_after_the_end_was_sent() -> None:
    events: list[object] = []

    class Chunks(list[bytes]):
        def close(self) -> None:
            events.append("closed")

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return Chunks([b"a"])

    async def main() -> None:
        async def send(message: Message) -> None:
            events.append(message)

        await WsgiToAsgi(application)(SCOPE, Server(*REQUEST).receive, send)

    run(main)
    assert events == [start(), body(b"a"), END, "closed"]


# --- A client that leaves -----------------------------------------------------------


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("messages", [REQUEST, [request(b"unread", more_body=True)]])
def test_client_that_leaves_ends_an_endless_answer(messages: list[Message]) -> None:
    endless = Endless()

    async def main() -> None:
        server = Server(*messages)
        serving = asyncio.create_task(server.serve(endless))
        await server.until_sent(3)
        server.leave()
        await serving

    run(main)
    assert endless.closed.is_set()
    assert len(endless.threads) == 1
    assert endless.was_cancelled


@pytest.mark.usefixtures("listening")
def test_client_that_leaves_ends_an_answer_that_waits_for_a_coroutine() -> None:
    """As of a chat: the next event may never come."""
    waiting, closed = threading.Event(), threading.Event()

    async def next_event() -> None:
        waiting.set()
        await asyncio.get_running_loop().create_future()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            yield b""
            async_to_sync(next_event)()
        finally:
            closed.set()

    async def main() -> None:
        server = Server(*REQUEST)
        serving = asyncio.create_task(server.serve(application))
        await until(waiting)
        server.leave()
        await serving
        assert server.sent == []

    run(main)
    assert closed.is_set()


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("reports", [False, True])
def test_client_that_leaves_while_a_message_is_sent_ends_that(reports: bool, writes: bool) -> None:
    endless = Endless()

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if not writes:
            return endless(environ, start_response)
        with pytest.raises(ConnectionResetError):
            start_response("200 OK", [])(b"a")
        return endless

    async def main() -> None:
        server, stuck = Server(*REQUEST), asyncio.Event()

        async def send(message: Message) -> None:
            stuck.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                if reports:
                    raise ConnectionResetError from None
                raise

        serving = asyncio.create_task(WsgiToAsgi(application)(SCOPE, server.receive, send))
        await stuck.wait()
        server.leave()
        await serving

    run(main)
    assert endless.closed.is_set()


@pytest.mark.usefixtures("listening")
def test_client_that_leaves_before_the_answer_does_not_stop_the_application() -> None:
    called, release = threading.Event(), threading.Event()
    endless = Endless()
    work: list[str] = []

    async def wait() -> None:
        called.set()
        await until(release)
        work.append("done")

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        async_to_sync(wait)()
        return endless(environ, start_response)

    async def main() -> None:
        server = Server(*REQUEST)
        serving = asyncio.create_task(server.serve(application))
        await until(called)
        server.leave()
        while server.received < 2:
            await asyncio.sleep(0)
        await loop_turns()
        release.set()
        await serving
        assert server.sent == []

    run(main)
    assert work == ["done"]
    assert endless.asked == 0
    assert endless.closed.is_set()


@pytest.mark.usefixtures("listening")
def test_write_to_a_client_that_left_fails_each_time() -> None:
    writing = threading.Event()
    errors: list[OSError] = []

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        while len(errors) < 2:
            try:
                write(b"a")
                writing.set()
            except OSError as error:
                errors.append(error)
        return []

    async def main() -> None:
        server = Server(*REQUEST)
        serving = asyncio.create_task(server.serve(application))
        await until(writing)
        server.leave()
        await serving
        assert END not in server.sent

    run(main)
    assert [type(error).__mro__[1] for error in errors] == [ConnectionResetError] * 2


@pytest.mark.parametrize("error", [ConnectionResetError("gone"), OSError("gone")])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_send_that_says_the_client_left_ends_the_answer_quietly(
    error: OSError, after: int, caplog: pytest.LogCaptureFixture
) -> None:
    endless = Endless()

    async def main() -> None:
        server = Server(*REQUEST)

        async def send(message: Message) -> None:
            if len(server.sent) == after:
                raise error
            await server.send(message)

        await WsgiToAsgi(endless)(SCOPE, server.receive, send)
        await WsgiToAsgi(responding(b"a", b"b"))(SCOPE, Server(*REQUEST).receive, send)

    with caplog.at_level(logging.INFO, "django_asyncbridge.bridge.wsgi"):
        run(main)
    assert endless.closed.is_set()
    assert {record.levelno for record in caplog.records} == {logging.INFO}
    assert "gone" in caplog.text


def test_send_that_fails_otherwise_closes_the_answer_and_raises() -> None:
    endless = Endless()

    async def main() -> None:
        async def send(message: Message) -> None:
            raise LookupError("its own")

        with pytest.raises(LookupError, match="its own"):
            await WsgiToAsgi(endless)(SCOPE, Server(*REQUEST).receive, send)

    run(main)
    assert endless.closed.is_set()


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(
    "ending", ["repeats itself", "fails", "disconnects when cancelled", "waits"]
)
def test_receive_after_the_request_may_do_what_it_likes(ending: str) -> None:
    async def main() -> None:
        server = Server(*REQUEST)
        once = asyncio.Event()
        asked = asyncio.Event()

        async def receive() -> Message:
            if not once.is_set():
                once.set()
                return REQUEST[0]
            asked.set()
            if ending == "repeats itself":
                return REQUEST[0]
            if ending == "fails":
                raise LookupError("receive")
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                if ending == "waits":
                    raise
            return DISCONNECT

        def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            yield b"a"
            async_to_sync(asked.wait)()
            yield b"b"

        await WsgiToAsgi(application)(SCOPE, receive, server.send)
        assert server.bodies() == [b"a", b"b"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


# --- Cancellation ----------------------------------------------------------------------


def test_cancelled_request_ends_an_endless_answer_in_its_thread() -> None:
    endless = Endless()

    async def main() -> None:
        server = Server(*REQUEST)
        serving = asyncio.create_task(server.serve(endless))
        await server.until_sent(3)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)
    assert endless.closed.is_set()
    assert len(endless.threads) == 1


def test_cancelled_request_ends_an_answer_that_swallows_it() -> None:
    swallowed: list[BaseException] = []

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        try:
            write(b"a")
        except BaseException as error:
            swallowed.append(error)
        while True:
            yield b""

    async def main() -> None:
        stuck = asyncio.Event()

        async def send(message: Message) -> None:
            stuck.set()
            await asyncio.get_running_loop().create_future()

        serving = asyncio.create_task(
            WsgiToAsgi(application)(SCOPE, Server(*REQUEST).receive, send)
        )
        await stuck.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(main)
    assert [type(error) for error in swallowed] == [asyncio.CancelledError]


@pytest.mark.parametrize("reads", [0, 1, 2])
def test_cancelled_request_ends_at_each_place_where_it_waits_for_its_body(reads: int) -> None:
    read = threading.Event()
    errors: list[BaseException] = []

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgi.input"].read(1)
        read.set()
        try:
            environ["wsgi.input"].read()
        except BaseException as error:
            errors.append(error)
            raise
        raise AssertionError("read")

    async def main() -> None:
        server = Server(*[request(b"a", more_body=True)] * min(reads, 1))
        serving = asyncio.create_task(
            server.serve(application, read_ahead_bytes=1 if reads == 2 else 10)
        )
        if reads == 2:
            await until(read)
        await loop_turns(10)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert server.sent == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)
    assert [type(error) for error in errors] == [asyncio.CancelledError] * (reads == 2)


def test_cancelled_request_ends_while_its_list_is_sent() -> None:
    async def main() -> None:
        stuck = asyncio.Event()

        async def send(message: Message) -> None:
            stuck.set()
            await asyncio.get_running_loop().create_future()

        serving = asyncio.create_task(
            WsgiToAsgi(responding(b"a"))(SCOPE, Server(*REQUEST).receive, send)
        )
        await stuck.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(main)


# --- Other threads ------------------------------------------------------------------------


def test_write_and_sync_send_work_in_a_thread_of_the_applications_own() -> None:
    class Instance(WsgiToAsgiInstance):
        def start_response(self, *args: Any, **kwargs: Any) -> Callable[[bytes], object]:
            self.sync_send({"type": "http.response.debug"})
            return super().start_response(*args, **kwargs)

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        write = start_response("200 OK", [])
        run_in_thread(lambda: write(b"a"))
        return [b"b"]

    async def main() -> None:
        server = Server(*REQUEST)
        await Instance(application)(SCOPE, server.receive, server.send)
        debug = {"type": "http.response.debug"}
        assert server.sent == [debug, start(), body(b"a"), body(b"b"), END]

    run(main)


@pytest.mark.usefixtures("listening")
def test_receive_that_cannot_be_cancelled_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_wsgi_inbox, "_GRACE_SECONDS", 0.01)

    async def main() -> None:
        server, asked, ended = Server(*REQUEST), asyncio.Event(), asyncio.Event()

        async def receive() -> Message:
            if not asked.is_set() and server.received == 0:
                return await server.receive()
            asked.set()
            while not ended.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await ended.wait()
            return DISCONNECT

        def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
            start_response("200 OK", [])
            async_to_sync(asked.wait)()
            return [b"a"]

        await WsgiToAsgi(application)(SCOPE, receive, server.send)
        assert server.sent[-1] == END
        ended.set()
        await loop_turns()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


# --- What stays ---------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_request_leaves_no_reference_cycle(fails: bool) -> None:
    kept: list[Any] = []

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ["tracked"] = Tracked()
        kept.append(weakref.ref(environ["tracked"]))
        environ["wsgi.input"].read()
        start_response("200 OK", [])
        if fails:
            raise LookupError("its own")
        yield b"a"

    async def main() -> None:
        gc.collect()
        gc.disable()
        try:
            for messages in (REQUEST, [request(b"a", more_body=True), request(b"b")]):
                server = Server(*messages)
                try:
                    await server.serve(application, read_ahead_bytes=0)
                except LookupError:
                    assert fails
                await loop_turns()
        finally:
            gc.enable()

    run(main)
    assert [ref() for ref in kept] == [None, None]
