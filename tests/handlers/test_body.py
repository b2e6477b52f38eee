"""`read_body`: memory and temporary files, threads, and that nothing is left behind."""

import asyncio
import io
import logging
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIRequest
from django.test import override_settings

from django_asyncbridge.bridge.sync import Crossing, add_observer, remove_observer, sync_to_async
from django_asyncbridge.handlers import body as body_module
from django_asyncbridge.handlers.body import blocks_on_close, read_body
from tests.bridge import LIMIT_SECONDS, wait
from tests.handlers.requests import scope

DISCONNECT = {"type": "http.disconnect"}
temporary_file = tempfile.TemporaryFile


class Spy:
    """Every temporary file that was made: where it was opened, written and closed, and whether writing fails or waits."""

    def __init__(self) -> None:
        self.files: list[Any] = []
        self.did: list[tuple[str, threading.Thread]] = []
        self.failing: tuple[str, ...] = ()
        self.writing, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def make(self, dir: str | None) -> IO[bytes]:  # noqa: A002  # tempfile's name
        self._note("open")
        raw = temporary_file(dir=dir)
        self.files.append(raw)
        return _Spied(raw, self)  # type: ignore[return-value]

    def _note(self, what: str) -> None:
        self.did.append((what, threading.current_thread()))
        if what in self.failing:
            raise OSError(f"{what} failed")

    def threads(self) -> set[threading.Thread]:
        return {thread for _, thread in self.did}

    def names(self) -> list[str]:
        return [what for what, _ in self.did]


class _Spied:
    def __init__(self, raw: IO[bytes], spy: Spy) -> None:
        self.raw, self.spy = raw, spy
        self.read, self.tell = raw.read, raw.tell

    def write(self, data: bytes) -> None:
        self.spy._note("write")
        self.spy.writing.set()
        wait(self.spy.go_on)
        self.raw.write(data)

    def seek(self, place: int) -> None:
        self.spy._note("seek")
        self.raw.seek(place)

    def close(self) -> None:
        if not self.raw.closed:
            self.raw.close()
            self.spy._note("close")


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    """Watch temporary files; whatever a test does, all are closed at its end."""
    spy = Spy()
    monkeypatch.setattr(tempfile, "TemporaryFile", spy.make)
    yield spy
    assert all(file.closed for file in spy.files)


@pytest.fixture(autouse=True)
def small_limit() -> Iterator[None]:
    with override_settings(FILE_UPLOAD_MAX_MEMORY_SIZE=100):
        yield


class Server:
    """The messages of a server, and how often it was asked; then it waits for ever."""

    def __init__(self, *messages: Any) -> None:
        self.messages = list(messages)
        self.asked = 0

    async def receive(self) -> Any:
        self.asked += 1
        if self.messages:
            return self.messages.pop(0)
        return await asyncio.get_running_loop().create_future()


def parts(*bodies: bytes) -> list[dict[str, Any]]:
    """Return the messages of a body in these parts."""
    return [
        {"type": "http.request", "body": body, "more_body": number < len(bodies)}
        for number, body in enumerate(bodies, 1)
    ]


def read(*messages: Any) -> tuple[IO[bytes], int]:
    """Read a body; return it and the number of crossings."""
    crossings: list[Crossing] = []

    async def main() -> IO[bytes]:
        add_observer(crossings.append)
        try:
            return await read_body(Server(*messages).receive)
        finally:
            remove_observer(crossings.append)

    return asyncio.run(main()), len(crossings)


# --- In memory ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        ([{"type": "http.request"}], b""),
        ([{"type": "http.request", "body": b"one"}], b"one"),
        ([{"type": "http.request", "more_body": True}, {"type": "http.request"}], b""),
        (parts(b"x" * 5000), b"x" * 5000),
        (parts(b"a", b"", b"bc"), b"abc"),
        (parts(b"x" * 50, b"y" * 50), b"x" * 50 + b"y" * 50),
    ],
    ids=["no-keys", "no-more", "no-body", "one-large", "several", "at-the-limit"],
)
def test_read_body_of_one_message_or_up_to_the_limit_stays_in_memory(
    messages: list[Any], body: bytes, spy: Spy
) -> None:
    file, crossings = read(*messages)
    assert type(file) is io.BytesIO
    assert (file.tell(), file.read(), crossings) == (0, body, 0)
    assert not blocks_on_close(file)
    assert spy.did == []


def test_read_body_asks_for_no_message_after_the_last() -> None:
    server = Server(*parts(b"a", b"b"), DISCONNECT)
    asyncio.run(read_body(server.receive))
    assert server.asked == 2


# --- On disk -----------------------------------------------------------------------


def test_read_body_above_the_limit_goes_to_a_file_off_the_loop_and_off_the_home_thread(
    spy: Spy,
) -> None:
    async def main() -> None:
        home = await sync_to_async(threading.current_thread)()
        file = await read_body(Server(*parts(b"x" * 60, b"y" * 60, b"z")).receive)
        assert not spy.threads() & {home, threading.current_thread()}
        assert file.tell() == 0
        assert file.read() == b"x" * 60 + b"y" * 60 + b"z"
        assert blocks_on_close(file)
        await asyncio.to_thread(file.close)

    asyncio.run(main())
    assert spy.names() == ["open", "write", "write", "seek", "close"]


def test_read_body_gathers_small_pieces_and_crosses_once_for_each_mebibyte(spy: Spy) -> None:
    piece = bytes(range(256)) * 256
    file, crossings = read(*parts(*[piece] * 100))
    assert file.read() == piece * 100
    # The first, beyond the limit of 100 bytes; five of 17 pieces, just more than a MiB; the rest.
    assert crossings == 1 + 5 + 1
    assert spy.names().count("write") == 7
    file.close()


def test_read_body_makes_its_file_in_the_directory_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def make(**kwargs: Any) -> Any:
        made.append(kwargs)
        return temporary_file(**kwargs)

    monkeypatch.setattr(tempfile, "TemporaryFile", make)
    with override_settings(FILE_UPLOAD_TEMP_DIR=str(tmp_path)):
        file, _ = read(*parts(b"x" * 200, b"y"))
    file.close()
    assert made == [{"dir": str(tmp_path)}]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [10, 1000])
def test_read_body_is_what_djangos_request_reads_from(size: int) -> None:
    headers = [(b"content-type", b"application/x-www-form-urlencoded")]
    message = b"name=" + b"v" * size
    file, _ = read(*parts(message[:5], message[5:]))
    request = ASGIRequest({**scope("/"), "method": "POST", "headers": headers}, file)
    assert request.POST["name"] == "v" * size
    request.close()
    assert file.closed
    file, _ = read(*parts(b"x" * size, b"\nline\n"))
    request = ASGIRequest({**scope("/"), "method": "POST"}, file)
    assert request.readline() == b"x" * size + b"\n"
    assert request.read() == b"line\n"
    file.seek(0)
    request.close()


# --- Endings -------------------------------------------------------------------------


@pytest.mark.parametrize("before", [[], [b"x"], [b"x" * 200], [b"x" * 200, b"y"]])
def test_read_body_whose_client_leaves_raises_and_closes_its_file_off_the_loop(
    before: list[bytes], spy: Spy
) -> None:
    async def main() -> None:
        with pytest.raises(RequestAborted):
            await read_body(Server(*parts(*before, b"missing")[:-1], DISCONNECT).receive)
        assert threading.current_thread() not in spy.threads()

    asyncio.run(main())
    assert ("close" in spy.names()) is (len(before) > 0 and len(before[0]) > 100)


@pytest.mark.parametrize("kind", ["websocket.connect", None])
def test_read_body_of_a_message_of_another_protocol_raises_and_names_it(
    kind: str | None, spy: Spy
) -> None:
    with pytest.raises(ValueError, match=f"of type {kind!r} while the body"):
        read(*parts(b"x" * 200, b"")[:1], {"type": kind} if kind else {})


@pytest.mark.parametrize("failing", ["open", "write", "seek"])
def test_read_body_where_the_disk_fails_raises_and_leaves_no_file(failing: str, spy: Spy) -> None:
    spy.failing = (failing,)
    with pytest.raises(OSError, match=f"{failing} failed"):
        read(*parts(b"x" * 200, b"y"))


def test_read_body_given_up_whose_file_fails_to_close_says_so_quietly(
    spy: Spy, caplog: pytest.LogCaptureFixture
) -> None:
    spy.failing = ("close",)
    caplog.set_level(logging.INFO, "django_asyncbridge")
    with pytest.raises(RequestAborted):
        read(*parts(b"x" * 200, b"")[:1], DISCONNECT)
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("INFO", "django_asyncbridge.handlers")
    assert record.getMessage().startswith("The temporary file of a request was not closed")


def test_read_body_given_up_without_a_free_thread_closes_its_file_all_the_same(
    spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    off_loop = body_module._off_loop

    async def refuse_to_close(function: Any) -> Any:
        if function.__name__ == "close":
            raise TimeoutError("no worker became free")
        return await off_loop(function)

    monkeypatch.setattr(body_module, "_off_loop", refuse_to_close)
    with pytest.raises(RequestAborted):
        read(*parts(b"x" * 200, b"")[:1], DISCONNECT)
    assert spy.names()[-1] == "close"


def test_read_body_cancelled_during_a_write_waits_for_it_and_closes_the_file(spy: Spy) -> None:
    async def main() -> None:
        spy.go_on.clear()
        task = asyncio.create_task(read_body(Server(*parts(b"x" * 200, b"y")).receive))
        assert await asyncio.to_thread(spy.writing.wait, LIMIT_SECONDS)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=0)
        assert not done
        spy.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert spy.names() == ["open", "write", "close"]
        assert threading.current_thread() not in spy.threads()

    asyncio.run(main())


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("turns", range(16))
def test_read_body_cancelled_at_any_time_leaves_no_file(turns: int, again: bool, spy: Spy) -> None:
    """The fixture looks whether all files are closed."""

    async def main() -> None:
        server = Server(*parts(b"x" * 200, b"y" * 2**20, b"z", b"missing")[:-1])
        task = asyncio.create_task(read_body(server.receive))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        if again:
            await asyncio.sleep(0)
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


@pytest.mark.parametrize("size", [10, 200])
def test_read_body_whose_coroutine_is_closed_leaves_no_file(size: int, spy: Spy) -> None:
    """As the event loop of a program that ends may leave it."""

    async def main() -> None:
        server = Server(*parts(b"x" * size, b"y" * size, b"missing")[:-1])
        reading = read_body(server.receive)
        await _Steps(reading, server)
        reading.close()

    asyncio.run(main())
    assert ("close" in spy.names()) is (size > 100)


class _Steps:
    """Awaits a coroutine until the server has nothing more to say."""

    def __init__(self, coroutine: Any, server: Server) -> None:
        self.coroutine, self.server = coroutine, server

    def __await__(self) -> Any:
        while self.server.asked < 3:
            awaited = self.coroutine.send(None)
            if self.server.asked < 3:
                yield awaited
