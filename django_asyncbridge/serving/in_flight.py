"""What an `HTTPServer` is answering at a moment: the record of one request, and the words for several.

A record is made of the dict that the server keeps for the request, when somebody asks; a request that nobody asks for costs that
dict. On the loop's thread, like the dicts.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from django_asyncbridge.bridge.sync import SyncToAsync

__all__ = ("InFlight", "describe", "record_of", "request_line")

# A message may be about thousands.
_SHOWN = 8


@dataclass(frozen=True, slots=True)
class InFlight:
    """One HTTP request or WebSocket that a server is answering.

    Attributes:
        kind: "http" or "websocket".
        method: of the request; "" for a WebSocket.
        path: of the request, without the query, and percent-encoded: what a client sends cannot make a line of a log.
        client: the address of the client as the scope has it (host and port); None if it has none.
        seconds: how long ago it came.
        thread: the name of the request thread that it has at the moment; None if it has none, and always on Python 3.11, where
            the context of a task cannot be looked into.
        task: in which it is answered; cancelling that ends it.
    """

    kind: str
    method: str
    path: str
    client: tuple[str, int] | None
    seconds: float
    thread: str | None
    task: "asyncio.Task[Any]"


def record_of(details: Mapping[str, Any]) -> InFlight:
    """Return the record of an application instance of an `HTTPServer`."""
    scope, task = details["scope"], details["future"]
    client = scope.get("client")
    return InFlight(
        kind=scope["type"],
        method=scope.get("method", ""),
        path=quote(scope["path"]),
        client=None if client is None else (client[0], client[1]),
        seconds=max(0.0, time.time() - details["last_used"]),
        thread=_thread_of(task),
        task=task,
    )


def _thread_of(task: "asyncio.Task[Any]") -> str | None:
    """Return the name of the thread that the context of a task was lent."""
    get_context = getattr(task, "get_context", None)
    if get_context is None:
        return None
    context = get_context().get(SyncToAsync.thread_sensitive_context)
    executor: Any = SyncToAsync.context_to_thread_executor.get(context) if context else None
    name: str | None = getattr(executor, "thread_name", lambda: None)()
    return name


def request_line(scope: Mapping[str, Any]) -> str:
    """Return how a log names a request: its method, or that it is a WebSocket, and its path."""
    return f"{scope.get('method', 'WebSocket')} {quote(scope['path'])}"


def describe(requests: Sequence[InFlight]) -> str:
    """Return what a log says about requests, the oldest first: "GET /reports/ (12.3 s, asyncbridge-request-4)"."""
    eldest = sorted(requests, key=lambda request: -request.seconds)
    texts = [
        f"{request.method or 'WebSocket'} {request.path} ({request.seconds:.1f} s"
        f"{'' if request.thread is None else ', ' + request.thread})"
        for request in eldest[:_SHOWN]
    ]
    more = len(eldest) - len(texts)
    return ", ".join(texts) + (f" and {more} more" if more else "")
