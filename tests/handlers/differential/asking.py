"""`Question`, and asking an application: without a server, in one task and in one empty context for each question.

Which thread may touch what. Everything runs in the thread of the event loop.
"""

import asyncio
import contextvars
import gc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.handlers.differential import trace
from tests.handlers.differential.outcomes import Outcome

__all__ = ("LIMIT_SECONDS", "Application", "Question", "ask")

Application = Callable[..., Awaitable[None]]
LIMIT_SECONDS = 20.0


@dataclass(frozen=True)
class Question:
    """One HTTP request.

    Attributes:
        path: without the query.
        method: in capitals.
        query: as bytes of the request line.
        headers: names and values; a host is added.
        parts: of the body, each a message.
        leaves: whether the client is gone before the last part has come.
        root_path: of the scope.
    """

    path: str
    method: str = "GET"
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    parts: tuple[bytes, ...] = (b"",)
    leaves: bool = False
    root_path: str = ""

    def scope(self) -> dict[str, Any]:
        """Return the scope that a server would make of it."""
        length = sum(map(len, self.parts))
        sized = [(b"content-length", str(length).encode())] if length else []
        return {
            "type": "http",
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.root_path + self.path,
            "root_path": self.root_path,
            "query_string": self.query,
            "headers": [(b"host", b"localhost"), *sized, *self.headers],
            "client": ("127.0.0.1", 40000),
            "server": ("localhost", 80),
        }

    def messages(self) -> list[dict[str, Any]]:
        """Return what the application receives."""
        last = len(self.parts) - 1
        found: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": self.leaves or number < last}
            for number, part in enumerate(self.parts)
        ]
        return [*found, {"type": "http.disconnect"}] if self.leaves else found


class Client:
    """The other end of an application's connection."""

    def __init__(self, question: Question) -> None:
        self._messages = iter(question.messages())
        self.started: dict[str, Any] = {}
        self.body = b""
        self.ended = False

    async def receive(self) -> dict[str, Any]:
        """Give the next message; after the last one, none comes."""
        for message in self._messages:
            return message
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody answers that")

    async def send(self, message: dict[str, Any]) -> None:
        """Take a message, and note where the answer begins and ends."""
        if message["type"] == "http.response.start":
            self.started = message
            trace.note("answer", "begins")
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body", False):
                self.ended = True
                trace.note("answer", "ends")


async def ask(application: Application, question: Question) -> Outcome:
    """Ask, wait until the application has returned, and return what came of it."""
    lines, client = trace.begin(), Client(question)
    # What is closed when it is collected would be closed at any moment: all that comes of it, comes afterwards.
    gc.disable()
    try:
        task = asyncio.create_task(
            _call(application, question, client),
            context=contextvars.Context(),
        )
        await asyncio.wait([task], timeout=LIMIT_SECONDS)
        raised = _raised(task)
        trace.end()
    finally:
        gc.enable()
    return Outcome(
        tuple(lines),
        raised,
        client.started.get("status"),
        tuple((bytes(name), bytes(value)) for name, value in client.started.get("headers", ())),
        client.body,
        client.ended,
    )


async def _call(application: Application, question: Question, client: Client) -> None:
    await application(question.scope(), client.receive, client.send)


def _raised(task: "asyncio.Task[None]") -> str:
    if not task.done():
        task.cancel()
        return f"hangs for {LIMIT_SECONDS} s"
    if task.cancelled():
        return "CancelledError"
    error = task.exception()
    return f"{type(error).__name__}: {error}" if error else ""
