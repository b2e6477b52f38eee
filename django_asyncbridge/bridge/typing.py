"""Types for ASGI: the scope, the events and the application of each protocol, for type checkers.

All are plain dictionaries and callables at run time; nothing here checks or converts a value. A key that the
specification gives a default may be missing, so it is ``NotRequired``: in what an application sends it may be left
out, and what an application receives is read with ``.get()``. The default is beside the key.

Headers are pairs of ``(name, value)`` in bytes, names in lower case, one pair per header line, in order.

Each docstring names its section, in one of four documents:

- *ASGI*: the ASGI specification 3.0.
- *WWW*: the HTTP and WebSocket message format 2.5.
- *Lifespan*: the lifespan protocol 2.0.
- *Extensions*: the ASGI extensions, with the TLS extension 0.2. Send an extension's event only if its name is
  in ``scope["extensions"]``.

Source:
    https://asgi.readthedocs.io/en/latest/specs/index.html
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, NotRequired, Protocol, TypedDict

__all__ = (
    "ASGI2Application",
    "ASGI2Instance",
    "ASGI2Protocol",
    "ASGI3Application",
    "ASGIApplication",
    "ASGIReceiveCallable",
    "ASGIReceiveEvent",
    "ASGISendCallable",
    "ASGISendEvent",
    "ASGIVersions",
    "HTTPDisconnectEvent",
    "HTTPRequestEvent",
    "HTTPResponseBodyEvent",
    "HTTPResponseDebugEvent",
    "HTTPResponseEarlyHintEvent",
    "HTTPResponsePathsendEvent",
    "HTTPResponseStartEvent",
    "HTTPResponseTrailersEvent",
    "HTTPResponseZeroCopySendEvent",
    "HTTPScope",
    "HTTPServerPushEvent",
    "LifespanScope",
    "LifespanShutdownCompleteEvent",
    "LifespanShutdownEvent",
    "LifespanShutdownFailedEvent",
    "LifespanStartupCompleteEvent",
    "LifespanStartupEvent",
    "LifespanStartupFailedEvent",
    "Scope",
    "SupportsFileno",
    "TLSExtension",
    "WWWScope",
    "WebSocketAcceptEvent",
    "WebSocketCloseEvent",
    "WebSocketConnectEvent",
    "WebSocketDisconnectEvent",
    "WebSocketReceiveEvent",
    "WebSocketResponseBodyEvent",
    "WebSocketResponseStartEvent",
    "WebSocketScope",
    "WebSocketSendEvent",
)


# --- Scopes ----------------------------------------------------------------


class ASGIVersions(TypedDict):
    """What the server speaks, in ``scope["asgi"]`` (ASGI, "Applications")."""

    version: Literal["2.0", "3.0"]
    spec_version: NotRequired[str]  # of the scope's protocol; "2.0", and "1.0" for lifespan


class HTTPScope(TypedDict):
    """One HTTP request (WWW, "HTTP Connection Scope"; extensions: ASGI, "Extensions")."""

    type: Literal["http"]
    asgi: ASGIVersions
    http_version: str  # "1.0", "1.1" or "2"
    method: str  # upper case
    scheme: NotRequired[str]  # "http"
    path: str  # decoded
    raw_path: NotRequired[bytes]  # as received, without the query; some servers cannot give it
    query_string: bytes  # percent-encoded
    root_path: NotRequired[str]  # ""
    headers: Iterable[tuple[bytes, bytes]]
    client: NotRequired[tuple[str, int] | None]  # None
    server: NotRequired[tuple[str, int | None] | None]  # None; (path, None) for a unix socket
    state: NotRequired[dict[str, Any]]  # a copy of what the application left in the lifespan scope
    extensions: NotRequired[dict[str, dict[object, object]] | None]


class WebSocketScope(TypedDict):
    """One WebSocket connection (WWW, "WebSocket Connection Scope"; extensions: ASGI, "Extensions")."""

    type: Literal["websocket"]
    asgi: ASGIVersions
    http_version: NotRequired[str]  # "1.1"
    scheme: NotRequired[str]  # "ws"
    path: str  # decoded
    raw_path: NotRequired[bytes]  # as received, without the query; some servers cannot give it
    query_string: NotRequired[bytes | None]  # b"", also for None
    root_path: NotRequired[str]  # ""
    headers: Iterable[tuple[bytes, bytes]]
    client: NotRequired[tuple[str, int] | None]  # None
    server: NotRequired[tuple[str, int | None] | None]  # None; (path, None) for a unix socket
    subprotocols: NotRequired[Iterable[str]]  # ()
    state: NotRequired[dict[str, Any]]  # a copy of what the application left in the lifespan scope
    extensions: NotRequired[dict[str, dict[object, object]] | None]


class LifespanScope(TypedDict):
    """The life of one event loop that serves requests (Lifespan, "Scope")."""

    type: Literal["lifespan"]
    asgi: ASGIVersions
    state: NotRequired[dict[str, Any]]  # empty, for the application to fill; missing: not supported


class TLSExtension(TypedDict):
    """What is known of the connection's TLS (Extensions, "TLS Connection Scope").

    The value of ``scope["extensions"]["tls"]``, which only connections over TLS have. The values of
    ``extensions`` have no common type, so the reader says which one it is:
    ``tls = cast("TLSExtension", extensions["tls"])``.
    """

    server_cert: str | None  # PEM
    client_cert_chain: NotRequired[Iterable[str]]  # (); PEM, the client's own first
    client_cert_name: NotRequired[str | None]  # None; a distinguished name as in RFC 4514
    client_cert_error: NotRequired[str | None]  # None; why the client's certificate was refused
    tls_version: int | None  # as in the TLS RFCs: 0x0304 is TLS 1.3
    cipher_suite: int | None  # 16 bits, as in the TLS RFCs


WWWScope = HTTPScope | WebSocketScope
Scope = HTTPScope | WebSocketScope | LifespanScope


# --- HTTP ------------------------------------------------------------------


class HTTPRequestEvent(TypedDict):
    """Received: a piece of the request's body, and the sign to begin (WWW, "Request")."""

    type: Literal["http.request"]
    body: NotRequired[bytes]  # b""
    more_body: NotRequired[bool]  # False


class HTTPDisconnectEvent(TypedDict):
    """Received: the client left, or the response is complete (WWW, "Disconnect" of HTTP)."""

    type: Literal["http.disconnect"]


class HTTPResponseStartEvent(TypedDict):
    """Sent: status and headers of the response (WWW, "Response Start")."""

    type: Literal["http.response.start"]
    status: int
    headers: NotRequired[Iterable[tuple[bytes, bytes]]]  # ()
    trailers: NotRequired[bool]  # False


class HTTPResponseBodyEvent(TypedDict):
    """Sent: a piece of the response's body (WWW, "Response Body")."""

    type: Literal["http.response.body"]
    body: NotRequired[bytes]  # b""
    more_body: NotRequired[bool]  # False


class HTTPResponseTrailersEvent(TypedDict):
    """Sent after the body, if the start promised it: trailing headers (Extensions, "HTTP Trailers")."""

    type: Literal["http.response.trailers"]
    headers: Iterable[tuple[bytes, bytes]]
    more_trailers: NotRequired[bool]  # False


class SupportsFileno(Protocol):
    """An open file of the operating system, as ``os.sendfile`` needs it (Extensions, "Zero Copy Send")."""

    def fileno(self) -> int:
        """Return the descriptor of the open file."""
        ...


class HTTPResponseZeroCopySendEvent(TypedDict):
    """Sent in place of a body event: a part of an open file (Extensions, "Zero Copy Send").

    The application closes the file.
    """

    type: Literal["http.response.zerocopysend"]
    file: SupportsFileno
    offset: NotRequired[int]  # bytes; the file's current position
    count: NotRequired[int]  # bytes; up to the end of the file
    more_body: NotRequired[bool]  # False


class HTTPResponsePathsendEvent(TypedDict):
    """Sent once, in place of all body events: the file to answer with (Extensions, "Path Send")."""

    type: Literal["http.response.pathsend"]
    path: str  # absolute


class HTTPResponseEarlyHintEvent(TypedDict):
    """Sent before the response's end: what the client will need (Extensions, "Early Hints")."""

    type: Literal["http.response.early_hint"]
    links: Iterable[bytes]  # values of Link headers, RFC 8288


class HTTPServerPushEvent(TypedDict):
    """Sent between start and end of the response: a push promise (Extensions, "HTTP/2 Server Push")."""

    type: Literal["http.response.push"]
    path: str  # decoded
    headers: Iterable[tuple[bytes, bytes]]


class HTTPResponseDebugEvent(TypedDict):
    """Sent once, before the response starts: what a test client wants to see (Extensions, "Debug")."""

    type: Literal["http.response.debug"]
    info: dict[str, Any]


# --- WebSocket -------------------------------------------------------------


class WebSocketConnectEvent(TypedDict):
    """Received: a client asks to connect; accept, close or deny it (WWW, "Connect")."""

    type: Literal["websocket.connect"]


class WebSocketAcceptEvent(TypedDict):
    """Sent: the connection is accepted (WWW, "Accept")."""

    type: Literal["websocket.accept"]
    subprotocol: NotRequired[str | None]  # None
    headers: NotRequired[Iterable[tuple[bytes, bytes]]]  # (); not sec-websocket-protocol


class WebSocketReceiveEvent(TypedDict):
    """Received: one message; exactly one of ``bytes`` and ``text`` is not None (WWW, "Receive")."""

    type: Literal["websocket.receive"]
    bytes: NotRequired[bytes | None]  # None
    text: NotRequired[str | None]  # None


class WebSocketSendEvent(TypedDict):
    """Sent: one message; exactly one of ``bytes`` and ``text`` is not None (WWW, "Send")."""

    type: Literal["websocket.send"]
    bytes: NotRequired[bytes | None]  # None
    text: NotRequired[str | None]  # None


class WebSocketResponseStartEvent(TypedDict):
    """Sent in place of accept: an HTTP response (Extensions, "WebSocket Denial Response")."""

    type: Literal["websocket.http.response.start"]
    status: int
    headers: NotRequired[Iterable[tuple[bytes, bytes]]]  # ()


class WebSocketResponseBodyEvent(TypedDict):
    """Sent: a piece of that response's body (Extensions, "WebSocket Denial Response")."""

    type: Literal["websocket.http.response.body"]
    body: NotRequired[bytes]  # b""
    more_body: NotRequired[bool]  # False


class WebSocketDisconnectEvent(TypedDict):
    """Received: the connection is gone (WWW, "Disconnect" of WebSocket)."""

    type: Literal["websocket.disconnect"]
    code: int  # 1005 if the client gave none
    reason: NotRequired[str | None]  # "", also for None


class WebSocketCloseEvent(TypedDict):
    """Sent: close the connection, or refuse it with 403 if not yet accepted (WWW, "Close")."""

    type: Literal["websocket.close"]
    code: NotRequired[int]  # 1000
    reason: NotRequired[str | None]  # "", also for None


# --- Lifespan --------------------------------------------------------------


class LifespanStartupEvent(TypedDict):
    """Received: the server is about to take connections (Lifespan, "Startup")."""

    type: Literal["lifespan.startup"]


class LifespanStartupCompleteEvent(TypedDict):
    """Sent: ready, connections may come (Lifespan, "Startup Complete")."""

    type: Literal["lifespan.startup.complete"]


class LifespanStartupFailedEvent(TypedDict):
    """Sent: not ready; the server logs the message and ends (Lifespan, "Startup Failed")."""

    type: Literal["lifespan.startup.failed"]
    message: NotRequired[str]  # ""


class LifespanShutdownEvent(TypedDict):
    """Received: all connections are closed and none will follow (Lifespan, "Shutdown")."""

    type: Literal["lifespan.shutdown"]


class LifespanShutdownCompleteEvent(TypedDict):
    """Sent: cleaned up, the server may end (Lifespan, "Shutdown Complete")."""

    type: Literal["lifespan.shutdown.complete"]


class LifespanShutdownFailedEvent(TypedDict):
    """Sent: cleaning up failed; the server logs the message and ends (Lifespan, "Shutdown Failed")."""

    type: Literal["lifespan.shutdown.failed"]
    message: NotRequired[str]  # ""


# --- Applications ----------------------------------------------------------

ASGIReceiveEvent = (
    HTTPRequestEvent
    | HTTPDisconnectEvent
    | WebSocketConnectEvent
    | WebSocketReceiveEvent
    | WebSocketDisconnectEvent
    | LifespanStartupEvent
    | LifespanShutdownEvent
)
ASGISendEvent = (
    HTTPResponseStartEvent
    | HTTPResponseBodyEvent
    | HTTPResponseTrailersEvent
    | HTTPResponseZeroCopySendEvent
    | HTTPResponsePathsendEvent
    | HTTPResponseEarlyHintEvent
    | HTTPServerPushEvent
    | HTTPResponseDebugEvent
    | WebSocketAcceptEvent
    | WebSocketSendEvent
    | WebSocketResponseStartEvent
    | WebSocketResponseBodyEvent
    | WebSocketCloseEvent
    | LifespanStartupCompleteEvent
    | LifespanStartupFailedEvent
    | LifespanShutdownCompleteEvent
    | LifespanShutdownFailedEvent
)

ASGIReceiveCallable = Callable[[], Awaitable[ASGIReceiveEvent]]
ASGISendCallable = Callable[[ASGISendEvent], Awaitable[None]]


class ASGI2Protocol(Protocol):
    """A class of legacy applications, one instance per connection (ASGI, "Legacy Applications")."""

    def __init__(self, scope: Scope) -> None: ...

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve the connection the instance was made for, on the server's event loop.

        Args:
            receive: Waits for the next event of the connection.
            send: Hands one event to the server.
        """
        ...


ASGI2Instance = Callable[[ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]
# The specification asks for a callable of the scope; a class is the usual one, a function is as good.
ASGI2Application = type[ASGI2Protocol] | Callable[[Scope], ASGI2Instance]
ASGI3Application = Callable[[Scope, ASGIReceiveCallable, ASGISendCallable], Awaitable[None]]
ASGIApplication = ASGI2Application | ASGI3Application
