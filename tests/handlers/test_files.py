"""Files: read in large blocks in the home thread, or left to a server that sends them itself."""

import asyncio
import gzip
import io
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core import signals
from django.core.files.base import ContentFile, File
from django.core.files.uploadedfile import TemporaryUploadedFile
from django.http import FileResponse, HttpResponse, StreamingHttpResponse

from django_asyncbridge.bridge.sync import (
    Crossing,
    ThreadSensitiveContext,
    add_observer,
    remove_observer,
    sync_to_async,
)
from django_asyncbridge.handlers import answers
from django_asyncbridge.handlers.answers import send_response
from tests.bridge import LIMIT_SECONDS
from tests.handlers.test_answers import Client, zipped

CONTENT = bytes(range(256)) * 4 * 1000
PATH, ZERO_COPY = "http.response.pathsend", "http.response.zerocopysend"
OFFERS: Any = {"extensions": {PATH: {}, ZERO_COPY: {}}}


@pytest.fixture(autouse=True)
def nobody_hears_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers of Django's look at the connections of this thread, which are those of other tests."""
    monkeypatch.setattr(signals.request_finished, "receivers", [])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give a file of a MB."""
    path = tmp_path / "caf\u00e9.txt"
    path.write_bytes(CONTENT)
    return path


def send(response: Any, scope: Any, client: Client | None = None) -> Client:
    """Send a response and close it, as a handler does; return what the client got."""
    client = client or Client()

    async def main() -> None:
        async with asyncio.timeout(LIMIT_SECONDS), ThreadSensitiveContext():
            try:
                await send_response(response, client.send, scope)
            finally:
                await sync_to_async(response.close)()

    asyncio.run(main())
    return client


def kinds(client: Client) -> list[str]:
    return [message["type"].removeprefix("http.response.") for message in client.messages]


# --- Blocks ------------------------------------------------------------------------


def at_offset(path: Path) -> Any:
    opened = path.open("rb")
    opened.seek(1000)
    return opened


def temporary(path: Path) -> Any:
    made = tempfile.NamedTemporaryFile()  # noqa: SIM115
    made.write(path.read_bytes())
    made.seek(0)
    return made


SOURCES: dict[str, tuple[Callable[[Path], Any], int]] = {
    "memory": (lambda path: io.BytesIO(path.read_bytes()), 0),
    "disk": (lambda path: path.open("rb"), 0),
    "unbuffered": (lambda path: path.open("rb", buffering=0), 0),
    "offset": (at_offset, 1000),
    "temporary": (temporary, 0),
    "django": (lambda path: File(path.open("rb")), 0),
    "content-file": (lambda path: ContentFile(path.read_bytes()), 0),
}


@pytest.mark.parametrize(("source", "skipped"), SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("as_attachment", [False, True])
def test_file_response_is_sent_in_large_blocks(
    source: Callable[[Path], Any], skipped: int, as_attachment: bool, file: Path
) -> None:
    response = FileResponse(source(file), as_attachment=as_attachment, filename="name.txt")
    client = send(response, {})
    assert client.body == CONTENT[skipped:]
    assert [len(part) for part in client.parts[:-1]] == [answers._BLOCK_BYTES] * 3
    headers = dict(client.messages[0]["headers"])
    assert headers[b"Content-Length"] == str(len(CONTENT) - skipped).encode()
    disposition = b"attachment" if as_attachment else b"inline"
    assert headers[b"Content-Disposition"] == disposition + b'; filename="name.txt"'
    assert client.messages[-1] == {"type": "http.response.body"}


class Watched(io.BytesIO):
    """A file in memory that notes where it is read, closed, and in which blocks."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.threads: set[threading.Thread] = set()
        self.blocks: list[int | None] = []

    def read(self, size: int | None = -1, /) -> bytes:
        self.threads.add(threading.current_thread())
        self.blocks.append(size)
        return super().read(size)

    def close(self) -> None:
        self.threads.add(threading.current_thread())
        super().close()


@pytest.mark.parametrize("stops_at", [1, 2, 5])
def test_file_response_is_read_in_one_thread_and_no_further_than_the_look_ahead(
    stops_at: int,
) -> None:
    async def main() -> None:
        watched, client = Watched(bytes(answers._BLOCK_BYTES * 20)), Client(stops_at=stops_at)
        response = FileResponse(watched)
        async with asyncio.timeout(LIMIT_SECONDS), ThreadSensitiveContext():
            task = asyncio.create_task(send_response(response, client.send, {}))
            await client.stopped.wait()
            for _ in range(20):
                home = await sync_to_async(threading.current_thread)()
            assert len(watched.blocks) <= stops_at + answers._BLOCKS_AHEAD
            client.go_on.set()
            await task
            await sync_to_async(response.close)()
        assert set(watched.blocks) == {answers._BLOCK_BYTES}
        assert watched.threads == {home}

    asyncio.run(main())


def test_file_response_with_larger_blocks_of_its_own_keeps_them() -> None:
    watched = Watched(b"x" * 2_000_000)
    response = FileResponse(watched)
    response.block_size = 2**20
    client = send(response, {})
    assert set(watched.blocks) == {2**20}
    # Servers get no more at once than from others.
    assert max(map(len, client.parts)) == answers._BLOCK_BYTES
    assert len(client.body) == 2_000_000


def test_file_response_whose_client_leaves_raises_and_leaves_the_file_to_its_close(
    file: Path,
) -> None:
    opened = file.open("rb")
    with pytest.raises(OSError, match="has left"):
        send(FileResponse(opened), {}, Client(leaves_at=2))
    assert opened.closed


# --- Left to the server --------------------------------------------------------------


def crossings_of(response: Any, scope: Any) -> int:
    crossings: list[Crossing] = []

    async def main() -> None:
        async with ThreadSensitiveContext():
            add_observer(crossings.append)
            try:
                await send_response(response, Client().send, scope)
            finally:
                remove_observer(crossings.append)

    asyncio.run(main())
    return len(crossings)


@pytest.mark.parametrize("source", ["disk", "unbuffered", "django"])
def test_file_response_is_left_to_a_server_that_takes_paths(source: str, file: Path) -> None:
    response = FileResponse(SOURCES[source][0](file))
    headers = {name.encode(): value.encode() for name, value in response.items()}
    client = send(response, OFFERS)
    assert dict(client.messages[0]["headers"]) == headers
    assert client.messages[1:] == [{"type": PATH, "path": str(file)}]


def test_file_response_left_to_the_server_costs_one_crossing(file: Path) -> None:
    with file.open("rb") as opened:
        assert crossings_of(FileResponse(opened), OFFERS) == 1
        assert crossings_of(FileResponse(io.BytesIO(CONTENT)), OFFERS) > 1


def test_file_response_of_a_file_opened_by_a_relative_path_is_sent_by_its_absolute_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    opened = Path(file.name).open("rb")  # noqa: SIM115
    client = send(FileResponse(opened), OFFERS)
    assert client.messages[1:] == [{"type": PATH, "path": str(file)}]


@pytest.mark.parametrize("source", ["disk", "unbuffered", "django", "temporary", "offset"])
def test_file_response_is_left_to_a_server_that_takes_open_files(source: str, file: Path) -> None:
    make, offset = SOURCES[source]
    opened: list[bool] = []

    class Server(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if message["type"] == ZERO_COPY:
                content = os.pread(message["file"].fileno(), message["count"], message["offset"])
                opened.append(content == CONTENT[offset:])

    client = send(FileResponse(make(file)), {"extensions": {ZERO_COPY: {}}}, Server())
    (message,) = client.messages[1:]
    assert opened == [True]
    assert message.pop("file").closed
    count = len(CONTENT) - offset
    assert message == {"type": ZERO_COPY, "offset": offset, "count": count, "more_body": False}


@pytest.mark.parametrize("source", ["offset", "temporary"])
def test_file_response_that_no_path_leads_to_is_not_left_to_a_server_that_takes_paths(
    source: str, file: Path
) -> None:
    make, offset = SOURCES[source]
    client = send(FileResponse(make(file)), {"extensions": {PATH: {}}})
    assert client.body == CONTENT[offset:]
    assert kinds(send(FileResponse(make(file)), OFFERS)) == ["start", "zerocopysend"]


def test_file_response_of_an_upload_is_not_sent_by_its_path(file: Path) -> None:
    upload = TemporaryUploadedFile("name.txt", "text/plain", len(CONTENT), None)
    upload.write(CONTENT)
    upload.seek(0)
    assert kinds(send(FileResponse(upload), OFFERS)) == ["start", "zerocopysend"]


class Shouting(FileResponse):
    def make_bytes(self, value: Any) -> bytes:
        return super().make_bytes(value).upper()


class Doubling(FileResponse):
    def _set_streaming_content(self, value: Any) -> None:
        super()._set_streaming_content(value)  # type: ignore[misc]
        inner: Iterator[bytes] = self._iterator  # type: ignore[has-type]
        self._iterator = (block + block for block in inner)


class Reversed(File):  # type: ignore[type-arg]
    def read(self, size: int = -1) -> bytes:
        assert self.file is not None
        return bytes(reversed(self.file.read(size)))


def with_length(response: FileResponse, length: str | None) -> FileResponse:
    if length is None:
        del response["Content-Length"]
    else:
        response["Content-Length"] = length
    return response


def shortened(path: Path) -> FileResponse:
    response = FileResponse(path.open("rb"))
    path.write_bytes(b"short")
    return response


def replaced_content(path: Path) -> FileResponse:
    response = FileResponse(path.open("rb"))
    response.streaming_content = (part.upper() for part in response.streaming_content)  # type: ignore[union-attr]
    return response


def decompressed(path: Path) -> FileResponse:
    packed = path.with_suffix(".gz")
    packed.write_bytes(gzip.compress(b"x" * 100))
    return FileResponse(gzip.open(packed))


def grown_in_memory(path: Path) -> FileResponse:
    spooled = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    spooled.write(b"x" * 100)
    spooled.seek(0)
    return FileResponse(spooled)


def pipe(path: Path) -> FileResponse:
    reading, writing = os.pipe()
    os.write(writing, b"x" * 100)
    os.close(writing)
    response = FileResponse(os.fdopen(reading, "rb", buffering=0))
    return with_length(response, "100")


def empty(path: Path) -> FileResponse:
    path.write_bytes(b"")
    return FileResponse(path.open("rb"))


def reader_of(path: Path) -> FileResponse:
    """A reader around what is no file."""
    return FileResponse(io.BufferedReader(io.BytesIO(path.read_bytes())))  # type: ignore[arg-type,type-var,unused-ignore]


STREAMED: dict[str, Callable[[Path], Any]] = {
    "own-bytes": lambda path: Shouting(path.open("rb")),
    "own-iterator": lambda path: Doubling(path.open("rb")),
    "own-read": lambda path: FileResponse(Reversed(path.open("rb"))),
    "no-length": lambda path: with_length(FileResponse(path.open("rb")), None),
    "wrong-length": lambda path: with_length(FileResponse(path.open("rb")), "5"),
    "no-number": lambda path: with_length(FileResponse(path.open("rb")), "five"),
    "shortened": shortened,
    "replaced": replaced_content,
    "compressed": lambda path: zipped(FileResponse(path.open("rb"))),
    "decompressed": decompressed,
    "spooled": grown_in_memory,
    "memory": lambda path: FileResponse(io.BytesIO(b"x" * 100)),
    "reader": reader_of,
    "pipe": pipe,
    "empty": empty,
    "no-file": lambda path: FileResponse([b"a", b"b"]),
    "async": lambda path: FileResponse(_aparts()),
}


async def _aparts() -> Any:
    yield b"a"
    yield b"b"


@pytest.mark.parametrize("make", STREAMED.values(), ids=STREAMED)
def test_file_response_whose_content_is_not_the_files_is_streamed(
    make: Callable[[Path], Any], file: Path
) -> None:
    ours = send(make(file), OFFERS)
    assert set(kinds(ours)) == {"start", "body"}
    file.write_bytes(CONTENT)
    if make is not STREAMED["compressed"]:  # which is different each time
        assert ours.body == send(make(file), {}).body


def test_file_response_of_a_closed_file_fails_as_without_the_server(file: Path) -> None:
    response = FileResponse(file.open("rb"))
    assert response.file_to_stream is not None
    response.file_to_stream.close()
    with pytest.raises(ValueError, match="closed file"):
        send(response, OFFERS)


def unlinked(path: Path) -> Any:
    opened = path.open("rb")
    path.unlink()
    return opened


def renamed_over(path: Path) -> Any:
    opened = path.open("rb")
    other = path.with_name("other")
    other.write_bytes(CONTENT)
    other.rename(path)
    return opened


def by_descriptor(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_RDONLY), "rb")


def by_bytes(path: Path) -> Any:
    return open(os.fsencode(path), "rb")  # noqa: PTH123


def no_text(path: Path) -> Any:
    directory = path.with_name(os.fsdecode(b"caf\xe9"))
    directory.mkdir(exist_ok=True)
    return path.rename(directory / "name.txt").open("rb")


@pytest.mark.parametrize("make", [unlinked, renamed_over, by_descriptor, by_bytes, no_text])
def test_file_response_whose_path_leads_elsewhere_is_not_sent_by_it(
    make: Callable[[Path], Any], file: Path
) -> None:
    only_paths = send(FileResponse(make(file)), {"extensions": {PATH: {}}})
    assert only_paths.body == CONTENT
    file.write_bytes(CONTENT)
    assert kinds(send(FileResponse(make(file)), OFFERS)) == ["start", "zerocopysend"]


@pytest.mark.parametrize("scope", [{}, {"extensions": None}, {"extensions": {"tls": {}}}])
def test_file_response_to_a_server_without_the_extensions_is_streamed(
    scope: Any, file: Path
) -> None:
    assert send(FileResponse(file.open("rb")), scope).body == CONTENT


def test_other_responses_are_never_left_to_the_server() -> None:
    assert send(HttpResponse(b"x"), OFFERS).body == b"x"
    assert send(StreamingHttpResponse([b"x"]), OFFERS).body == b"x"
