"""Asking an ASGI application for a page, without a server."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from django.http import HttpRequest

Application = Callable[..., Awaitable[None]]


class Answer:
    """What came back: status, headers by lower-case name, and body."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def send(self, message: Any) -> None:
        """Take one message of the application's."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            for name, value in message["headers"]:
                self.headers[name.decode().lower()] = value.decode()
        self.body += message.get("body", b"")


async def get(application: Application, path: str, gone: asyncio.Event | None = None) -> Answer:
    """Ask for a page; the client leaves when `gone` is set."""
    answer = Answer()
    messages = iter([{"type": "http.request"}])

    async def receive() -> Any:
        for message in messages:
            return message
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    await application(scope(path), receive, answer.send)
    return answer


def scope(path: str) -> dict[str, Any]:
    """Return the scope of a GET request."""
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }


def request_of(path: str) -> HttpRequest:
    """Return a GET request as views and middlewares see it."""
    request = HttpRequest()
    request.method, request.path = "GET", path
    return request
