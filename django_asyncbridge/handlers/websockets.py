"""`serve_websocket`: WebSockets go to what ``ASYNCBRIDGE["WEBSOCKET_APPLICATION"]`` names; without it they are refused.

Django has no WebSockets, so another application has them. It is called as a server calls it, in the same task, with the same `receive` and
`send`; it gets no thread of its own. A refusal is an answer, not an error: the connection is closed before it was accepted, for which servers send 403, as
other frameworks have it for an address without a WebSocket.

Which thread may touch what. All of it runs on the event loop that is served. The application is imported by whoever needs it first; two
threads that come at once may both import it, and get the same one.

Source: ASGI specification, "HTTP & WebSocket ASGI Message Format", section WebSocket.
"""

import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from django_asyncbridge import conf
from django_asyncbridge._servable import WEBSOCKET_APPLICATION, import_websocket_application
from django_asyncbridge.bridge.compatibility import guarantee_single_callable
from django_asyncbridge.handlers.lifespan import state_of

__all__ = ("serve_websocket", "websocket_application")

logger = logging.getLogger("django_asyncbridge.handlers")

_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]
_Application = Callable[[Any, _Receive, _Send], Awaitable[Any]]


async def serve_websocket(scope: Any, receive: _Receive, send: _Send) -> None:
    """Hand one WebSocket to the application of the settings, or refuse it.

    The application's scope has a ``state`` whenever a lifespan has yielded one, whatever the server does.

    Args:
        scope: the scope.
        receive: gives the messages of the server.
        send: takes the answers.

    Raises:
        django.core.exceptions.ImproperlyConfigured: the setting names no application that can be imported.
        BaseException: whatever the application raised.
    """
    application = websocket_application()
    if application is None:
        await _refuse(scope, receive, send)
        return
    if "state" not in scope and (state := state_of(scope)):
        scope = {**scope, "state": state}
    await application(scope, receive, send)


def websocket_application() -> _Application | None:
    """Return the application of the settings, as one of ASGI 3; None if there is none. Imports it the first time.

    Raises:
        django.core.exceptions.ImproperlyConfigured: the setting names no application that can be imported.
    """
    path = conf.current().websocket_application
    return None if path is None else _load(path)


@functools.lru_cache(maxsize=1)
def _load(path: str) -> _Application:
    return guarantee_single_callable(import_websocket_application(path))


conf.on_change(_load.cache_clear)


# --- Without an application --------------------------------------------------------------


async def _refuse(scope: Any, receive: _Receive, send: _Send) -> None:
    """Refuse a WebSocket, once the server has offered it."""
    if (await receive())["type"] != "websocket.connect":
        # The client has left already.
        return
    logger.info(
        "The WebSocket %r is refused: %s names no application", scope["path"], WEBSOCKET_APPLICATION
    )
    # How servers say that the client has left meanwhile.
    with contextlib.suppress(OSError):
        # Not a 404 by the extension "websocket.http.response": uvicorn 0.54 logs an error after each
        # (Kludex/uvicorn#3138), and anybody may ask for a WebSocket.
        await send({"type": "websocket.close", "code": 1000})
