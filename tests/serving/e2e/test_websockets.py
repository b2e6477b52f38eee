"""WebSockets, with a client of another make."""

import contextlib
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK
from websockets.sync.client import ClientConnection, connect

from tests.serving.e2e.content import BLOCK
from tests.serving.e2e.servers import Server, complaints, running, until
from tests.serving.e2e.wire import LIMIT_SECONDS


@pytest.fixture(scope="module", params=["websockets", "websockets-sansio"])
def site(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Give a server with each way to use the library; in the end it has had nothing to complain about."""
    with running("0", "--ws", request.param) as server:
        yield server
        assert server.stop() == 0
        assert complaints(server.lines) == []


@pytest.fixture
def websocket(site: Server) -> Iterator[ClientConnection]:
    with connect(site.websocket_url(), proxy=None, open_timeout=LIMIT_SECONDS) as websocket:
        yield websocket


def echoed(websocket: ClientConnection, message: str | bytes) -> str | bytes:
    websocket.send(message)
    return websocket.recv(timeout=LIMIT_SECONDS)


@pytest.mark.parametrize(
    "message",
    ["hello", "", "naïve ☃ 𝄞", b"", b"\x00\xff", BLOCK * 8, "x" * 500_000],
    ids=["text", "no text", "unicode", "no bytes", "bytes", "many bytes", "long text"],
)
def test_message_comes_back_as_it_was(websocket: ClientConnection, message: str | bytes) -> None:
    answer = echoed(websocket, message)
    assert type(answer) is type(message)
    assert answer == message


def test_messages_come_back_in_order(websocket: ClientConnection) -> None:
    for number in range(200):
        websocket.send(str(number))
    assert [websocket.recv(timeout=LIMIT_SECONDS) for _ in range(200)] == list(map(str, range(200)))


def test_message_in_fragments_is_put_together(websocket: ClientConnection) -> None:
    websocket.send(["hel", "lo"])
    assert websocket.recv(timeout=LIMIT_SECONDS) == "hello"


def test_ping_is_answered(websocket: ClientConnection) -> None:
    assert websocket.ping().wait(LIMIT_SECONDS)


def test_close_of_the_application_reaches_the_client_with_code_and_reason(
    websocket: ClientConnection,
) -> None:
    websocket.send("close 4001")
    with pytest.raises(ConnectionClosedError) as caught:
        websocket.recv(timeout=LIMIT_SECONDS)
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "asked")


def test_ordinary_close_of_the_application_is_ordinary(websocket: ClientConnection) -> None:
    websocket.send("close 1000")
    with pytest.raises(ConnectionClosedOK):
        websocket.recv(timeout=LIMIT_SECONDS)


@pytest.mark.parametrize("code", [1000, 1001, 4002])
def test_close_of_the_client_reaches_the_application_with_its_code(
    site: Server, websocket: ClientConnection, code: int
) -> None:
    assert echoed(websocket, "hello") == "hello"
    count = len(site.fetch_json("/active/")["close_codes"])
    websocket.close(code, "enough")
    until(lambda: len(site.fetch_json("/active/")["close_codes"]) > count)
    assert site.fetch_json("/active/")["close_codes"][-1] == code


def test_many_websockets_are_kept_apart(site: Server) -> None:
    url = site.websocket_url()
    with contextlib.ExitStack() as stack:
        websockets = [
            stack.enter_context(connect(url, proxy=None, open_timeout=LIMIT_SECONDS))
            for _ in range(30)
        ]
        for number, websocket in enumerate(websockets):
            websocket.send(str(number))
        answers = [websocket.recv(timeout=LIMIT_SECONDS) for websocket in websockets]
    assert answers == [str(number) for number in range(30)]
    site.wait_until_idle()
