"""The served project: views and a WebSocket that show what the server does, and how many requests there are.

Which thread may touch what. `_active` and `_close_codes` belong to the loop's thread.
"""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from django_asyncbridge.asgi import get_asgi_application
from tests.serving.e2e.content import BLOCK, WORK_BODY

_project = get_asgi_application()
_active = 0
_close_codes: list[int] = []


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve the project, and count the requests and WebSockets there are."""
    global _active
    counts = scope["type"] != "lifespan"
    _active += counts
    try:
        await _project(scope, receive, send)
    finally:
        _active -= counts


# --- Views -----------------------------------------------------------------------


async def hello(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"hello {request.GET.get('name', '')}")


def hello_sync(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"hello {request.GET.get('name', '')}")


def upload(request: HttpRequest) -> HttpResponse:
    """Say what has arrived."""
    digest, count = hashlib.sha256(), 0
    while piece := request.read(65536):
        digest.update(piece)
        count += len(piece)
    return JsonResponse({"bytes": count, "sha256": digest.hexdigest()})


async def download(request: HttpRequest) -> StreamingHttpResponse:
    """Send so many blocks, each when the client has taken those before."""

    async def blocks(count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield BLOCK
            await asyncio.sleep(0)

    return _blocks_response(request, blocks(_blocks(request)))


def download_sync(request: HttpRequest) -> StreamingHttpResponse:
    """Send so many blocks from a thread."""

    def blocks(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield BLOCK

    return _blocks_response(request, blocks(_blocks(request)))


def _blocks(request: HttpRequest) -> int:
    return int(request.GET["blocks"])


def _blocks_response(
    request: HttpRequest, content: AsyncIterator[bytes] | Iterator[bytes]
) -> StreamingHttpResponse:
    headers = {}
    if "length" in request.GET:
        headers["content-length"] = str(_blocks(request) * len(BLOCK))
    return StreamingHttpResponse(content, headers=headers)


async def work(request: HttpRequest) -> StreamingHttpResponse:
    """Take a moment in the middle of an answer, so that one that is cut off shows."""

    async def content() -> AsyncIterator[bytes]:
        for word in WORK_BODY.partition(b", went on"):
            yield word
            await asyncio.sleep(0.002)

    return StreamingHttpResponse(content())


async def scope(request: HttpRequest) -> HttpResponse:
    """Say what the server says about the request."""
    return JsonResponse(
        {
            "scheme": request.scheme,
            "path": request.path,
            "script_name": request.META["SCRIPT_NAME"],
            "client": request.META.get("REMOTE_ADDR"),
            "headers": dict(request.headers),
            "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
            "pid": os.getpid(),
        }
    )


async def active(request: HttpRequest) -> HttpResponse:
    """Say how many requests there are beside this one, and with which codes WebSockets were closed."""
    return JsonResponse({"requests": _active - 1, "close_codes": _close_codes})


async def log(request: HttpRequest) -> HttpResponse:
    """Write a line into the log, after which everything before it can be read there."""
    logging.getLogger("django_asyncbridge.e2e").warning("mark %s", request.GET["mark"])
    return HttpResponse()


urlpatterns = [
    path("", hello),
    path("sync/", hello_sync),
    path("upload/", upload),
    path("download/", download),
    path("download/sync/", download_sync),
    path("work/", work),
    path("scope/", scope),
    path("active/", active),
    path("log/", log),
]


# --- WebSockets ------------------------------------------------------------------


async def websocket_application(scope: Any, receive: Any, send: Any) -> None:
    """Send everything back; at the text "close 4000" close with that code."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        if text is not None and text.startswith("close "):
            await send({"type": "websocket.close", "code": int(text[6:]), "reason": "asked"})
            return
        await send({"type": "websocket.send", **_payload(message)})
    _close_codes.append(message["code"])


def _payload(message: Any) -> dict[str, Any]:
    kind = "text" if message.get("text") is not None else "bytes"
    return {kind: message[kind]}
