"""`serve_websocket`: handed on to the application of the settings, or refused."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from django_asyncbridge.handlers import lifespan
from django_asyncbridge.handlers.websockets import serve_websocket, websocket_application

CONNECT: list[Any] = [{"type": "websocket.connect"}]
SCOPE: dict[str, Any] = {"type": "websocket", "path": "/ws/", "headers": []}

calls: list[Any] = []


async def application(*call: Any) -> None:
    """Note what it is called with, and accept."""
    calls.append(call)
    await call[2]({"type": "websocket.accept"})


class Legacy:
    """An ASGI 2 application."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await application(self.scope, receive, send)


async def failing(scope: Any, receive: Any, send: Any) -> None:
    raise LookupError(scope["path"])


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    raise AssertionError


@pytest.fixture(autouse=True)
def forget_calls() -> None:
    """Begin each test without calls."""
    calls.clear()


class Client:
    """The server's side of one WebSocket."""

    def __init__(self, messages: list[Any] = CONNECT, **scope: Any) -> None:
        self.scope = {**SCOPE, **scope}
        self.messages = list(messages)
        self.sent: list[Any] = []
        self.gone: Exception | None = None

    async def receive(self) -> Any:
        return self.messages.pop(0)

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if self.gone is not None:
            raise self.gone

    async def serve(self) -> list[Any]:
        await serve_websocket(self.scope, self.receive, self.send)
        return self.sent


def named(name: str | None) -> override_settings:
    """Set ``WEBSOCKET_APPLICATION`` to a name in this module."""
    path = name and f"{__name__}.{name}"
    return override_settings(ASYNCBRIDGE={"WEBSOCKET_APPLICATION": path})


# --- Handed on -------------------------------------------------------------------------


def test_websocket_goes_to_the_application_as_it_came() -> None:
    client = Client()
    with named("application"):
        assert asyncio.run(client.serve()) == [{"type": "websocket.accept"}]
    ((scope, receive, send),) = calls
    assert scope is client.scope
    assert (receive, send) == (client.receive, client.send)


def test_websocket_goes_to_an_application_of_asgi_2() -> None:
    with named("Legacy"):
        assert asyncio.run(Client().serve()) == [{"type": "websocket.accept"}]
    assert calls[0][0] == SCOPE


def test_websocket_application_is_imported_once_and_anew_when_the_setting_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def other(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError

    original: Callable[..., Awaitable[None]] = application
    with named("application"):
        assert websocket_application() is original
        monkeypatch.setitem(globals(), "application", other)
        assert websocket_application() is original
    with named("application"):
        assert websocket_application() is other
    with named(None):
        assert websocket_application() is None


def test_websocket_application_that_raises_is_the_servers_to_handle() -> None:
    with named("failing"), pytest.raises(LookupError, match="/ws/"):
        asyncio.run(Client().serve())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gone", 'does not define a "gone"'),
        ("SCOPE", "which cannot be called"),
        ("wsgi", "WsgiToAsgi"),
    ],
)
def test_websocket_application_that_is_none_is_an_error_that_says_what_to_write(
    name: str, said: str
) -> None:
    with named(name):
        for _ in range(2):
            with pytest.raises(ImproperlyConfigured) as raised:
                asyncio.run(Client().serve())
            assert said in str(raised.value)
            assert f'ASYNCBRIDGE["WEBSOCKET_APPLICATION"] names "{__name__}.{name}"' in str(
                raised.value
            )


def test_websocket_has_the_state_of_the_lifespan_whatever_the_server_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> list[Any]:
        monkeypatch.setitem(lifespan._kept, asyncio.get_running_loop(), {"pool": 1})
        await Client().serve()
        await Client(state={"pool": 2}).serve()
        return [call[0]["state"] for call in calls]

    with named("application"):
        assert asyncio.run(main()) == [{"pool": 1}, {"pool": 2}]


# --- Refused ---------------------------------------------------------------------------


def test_websocket_without_the_setting_is_refused_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "django_asyncbridge")
    # The extension is for answers that cost an error in the log of uvicorn.
    client = Client(path="/ws/\n/", extensions={"websocket.http.response": {}})
    with named(None):
        assert asyncio.run(client.serve()) == [{"type": "websocket.close", "code": 1000}]
    assert client.messages == []
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("django_asyncbridge.handlers", logging.INFO)
    assert record.getMessage() == (
        "The WebSocket '/ws/\\n/' is refused: "
        'ASYNCBRIDGE["WEBSOCKET_APPLICATION"] names no application'
    )


def test_websocket_whose_client_has_left_is_not_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "django_asyncbridge")
    with named(None):
        client = Client([{"type": "websocket.disconnect", "code": 1006}])
        assert asyncio.run(client.serve()) == []
    assert caplog.records == []


def test_websocket_whose_client_leaves_while_it_is_refused_ends_quietly() -> None:
    client = Client()
    client.gone = ConnectionResetError()
    with named(None):
        assert len(asyncio.run(client.serve())) == 1
