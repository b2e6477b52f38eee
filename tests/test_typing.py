"""The types of ``bridge.typing``: their names, and which key may be missing where.

What a type checker makes of them is in typing_probe.py, which mypy reads and nobody imports.
"""

import typing
from types import UnionType

import pytest

from django_asyncbridge.bridge import typing as asgi

# One line a type: its "type" value, the keys that are always there, the keys with a default. The ASGI
# specification's own lists, read once for this table and once for the module.
KEYS = {
    "ASGIVersions": (None, "version", "spec_version"),
    "HTTPScope": (
        "http",
        "asgi http_version method path query_string headers",
        "scheme raw_path root_path client server state extensions",
    ),
    "WebSocketScope": (
        "websocket",
        "asgi path headers",
        "http_version scheme raw_path query_string root_path client server subprotocols state extensions",
    ),
    "LifespanScope": ("lifespan", "asgi", "state"),
    "TLSExtension": (
        None,
        "server_cert tls_version cipher_suite",
        "client_cert_chain client_cert_name client_cert_error",
    ),
    "HTTPRequestEvent": ("http.request", "", "body more_body"),
    "HTTPDisconnectEvent": ("http.disconnect", "", ""),
    "HTTPResponseStartEvent": ("http.response.start", "status", "headers trailers"),
    "HTTPResponseBodyEvent": ("http.response.body", "", "body more_body"),
    "HTTPResponseTrailersEvent": ("http.response.trailers", "headers", "more_trailers"),
    "HTTPResponseZeroCopySendEvent": (
        "http.response.zerocopysend",
        "file",
        "offset count more_body",
    ),
    "HTTPResponsePathsendEvent": ("http.response.pathsend", "path", ""),
    "HTTPResponseEarlyHintEvent": ("http.response.early_hint", "links", ""),
    "HTTPServerPushEvent": ("http.response.push", "path headers", ""),
    "HTTPResponseDebugEvent": ("http.response.debug", "info", ""),
    "WebSocketConnectEvent": ("websocket.connect", "", ""),
    "WebSocketAcceptEvent": ("websocket.accept", "", "subprotocol headers"),
    "WebSocketReceiveEvent": ("websocket.receive", "", "bytes text"),
    "WebSocketSendEvent": ("websocket.send", "", "bytes text"),
    "WebSocketResponseStartEvent": ("websocket.http.response.start", "status", "headers"),
    "WebSocketResponseBodyEvent": ("websocket.http.response.body", "", "body more_body"),
    "WebSocketDisconnectEvent": ("websocket.disconnect", "code", "reason"),
    "WebSocketCloseEvent": ("websocket.close", "", "code reason"),
    "LifespanStartupEvent": ("lifespan.startup", "", ""),
    "LifespanStartupCompleteEvent": ("lifespan.startup.complete", "", ""),
    "LifespanStartupFailedEvent": ("lifespan.startup.failed", "", "message"),
    "LifespanShutdownEvent": ("lifespan.shutdown", "", ""),
    "LifespanShutdownCompleteEvent": ("lifespan.shutdown.complete", "", ""),
    "LifespanShutdownFailedEvent": ("lifespan.shutdown.failed", "", "message"),
}
RECEIVED = {
    "http.request",
    "http.disconnect",
    "websocket.connect",
    "websocket.receive",
    "websocket.disconnect",
    "lifespan.startup",
    "lifespan.shutdown",
}
NOT_DICTIONARIES = {
    "ASGI2Application",
    "ASGI2Instance",
    "ASGI2Protocol",
    "ASGI3Application",
    "ASGIApplication",
    "ASGIReceiveCallable",
    "ASGIReceiveEvent",
    "ASGISendCallable",
    "ASGISendEvent",
    "Scope",
    "SupportsFileno",
    "WWWScope",
}


def types_in(union: UnionType) -> set[str]:
    """Return the `type` values of a union of events or scopes, and see that each has just one."""
    members = typing.get_args(union)
    values = [typing.get_args(typing.get_type_hints(member)["type"]) for member in members]
    assert all(len(value) == 1 for value in values)
    return {value for (value,) in values}


def test_typing_names_are_all_in_the_tables() -> None:
    assert set(asgi.__all__) == set(KEYS) | NOT_DICTIONARIES


@pytest.mark.parametrize("name", KEYS)
def test_typing_dictionary_keys_are_required_as_the_specification_says(name: str) -> None:
    type_value, required, optional = KEYS[name]
    dictionary = getattr(asgi, name)
    always = set(required.split()) | ({"type"} if type_value else set())
    assert dictionary.__required_keys__ == always
    assert dictionary.__optional_keys__ == set(optional.split())
    if type_value:
        assert typing.get_args(typing.get_type_hints(dictionary)["type"]) == (type_value,)


@pytest.mark.parametrize("name", KEYS)
def test_typing_dictionary_docstring_names_its_document(name: str) -> None:
    documentation = getattr(asgi, name).__doc__
    assert any(
        f"({document}, " in documentation for document in ("ASGI", "WWW", "Lifespan", "Extensions")
    )


def test_typing_events_are_each_received_or_sent() -> None:
    events = {value for value, *_ in KEYS.values() if value and "." in value}
    assert types_in(asgi.ASGIReceiveEvent) == RECEIVED
    assert types_in(asgi.ASGISendEvent) == events - RECEIVED


def test_typing_scopes_are_those_of_the_three_protocols() -> None:
    assert types_in(asgi.WWWScope) == {"http", "websocket"}
    assert types_in(asgi.Scope) == {"http", "websocket", "lifespan"}
