"""A WebSocket echo in plain ASGI: no framework, so that what the server does is easy to see.

Source: ASGI specification, "HTTP & WebSocket ASGI Message Format", section WebSocket.
"""

from collections.abc import Awaitable, Callable

from django_asyncbridge.bridge.typing import (
    ASGIReceiveCallable,
    ASGISendCallable,
    WebSocketReceiveEvent,
    WebSocketScope,
    WebSocketSendEvent,
)

WebSocketApplication = Callable[
    [WebSocketScope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]
]


async def application(
    scope: WebSocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Hand a WebSocket to the application of its path; refuse a path that has none."""
    await ROUTES.get(scope["path"], refuse)(scope, receive, send)


async def echo(
    _scope: WebSocketScope, receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Send every message back as it came, text as text and bytes as bytes, until the client leaves.

    It reads no cookie and changes nothing, so it also answers pages of other origins; an application
    that knows its user has to compare the ``origin`` header first.
    """
    while (message := await receive())["type"] != "websocket.disconnect":
        if message["type"] == "websocket.receive":
            await send(_same_payload(message))
        else:
            await send({"type": "websocket.accept"})


def _same_payload(message: WebSocketReceiveEvent) -> WebSocketSendEvent:
    """Return the message to send that carries what `message` carried."""
    text = message.get("text")
    if text is not None:
        return {"type": "websocket.send", "text": text}
    return {"type": "websocket.send", "bytes": message.get("bytes")}


async def refuse(
    _scope: WebSocketScope, _receive: ASGIReceiveCallable, send: ASGISendCallable
) -> None:
    """Close a connection that was never accepted: the server answers the handshake with 403."""
    await send({"type": "websocket.close"})


ROUTES: dict[str, WebSocketApplication] = {"/ws/echo/": echo}
