"""`Answer`: the application's side of a request, from the call of the application to the last message.

What a list or tuple answers is left over for the task of the request, which sends it once the thread is free. Any other
iterable is asked for its next piece when the server has taken the one before.

A client that leaves while the answer is iterated over, or written, ends that: the coroutines that the application waits for are
cancelled, and the iterable is closed in its thread. Before that the application runs on, as under any WSGI server.

Which thread may touch what. The thread of the application, except `send_left_over` and `client_left`, which belong to the
loop. `client_left` reads what the thread has written: `_answering` is set before the thread looks whether the client is gone, so
that one of the two sees the other. `left_over` is read when the thread is done.

Source: PEP 3333, "Specification Details" and "Buffering and Streaming".
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import GeneratorType
from typing import Any, TypeAlias

from django_asyncbridge.bridge import _state
from django_asyncbridge.bridge._wsgi_inbox import ClientLeftError, Inbox, Receive
from django_asyncbridge.bridge._wsgi_response import END, Message, Response
from django_asyncbridge.bridge.sync import AsyncToSync, check_cancelled

__all__ = ("Answer", "Send")

Send: TypeAlias = Callable[[Any], Awaitable[None]]

# The name of the public module: what users configure should not follow how we cut the private ones.
logger = logging.getLogger("django_asyncbridge.bridge.wsgi")


class Answer:
    """One call of an application, and how its answer gets to the server.

    Args:
        receive: the server's.
        send: the server's.
        response: what the application says of its response.
        read_ahead_bytes: see `Inbox`.

    Attributes:
        inbox: what comes from the client.
        entered: whether the call has got its thread.
        left_over: messages to be sent when the thread is free.
    """

    def __init__(
        self, receive: Receive, send: Send, response: Response, read_ahead_bytes: int
    ) -> None:
        self.inbox = Inbox(receive, read_ahead_bytes, self.client_left)
        self.entered = False
        self.left_over: Sequence[Message] = ()
        self._send = send
        self._response = response
        self._answering = False
        # What the application waits for in `async_to_sync`.
        self._children: Any = None

    # --- On the loop ----------------------------------------------------------------

    async def send_left_over(self) -> None:
        """Send what needs no thread, unless the client leaves."""
        with contextlib.suppress(ClientLeftError):
            await _send(self.inbox, self._send, self.left_over)

    def client_left(self) -> None:
        """Stop the answer, if it is under way."""
        children = self._children
        if self._answering and children is not None:
            children.cancel()

    # --- In the thread of the application -------------------------------------------

    def enter(self) -> None:
        """Take note of the thread."""
        self.entered = True
        self._children = _state.threadlocal.task_context

    def run(self, call: Callable[[], Iterable[bytes]]) -> None:
        """Call the application, send its answer, and close that.

        Raises:
            Exception: what the application or `send` raised, unless it is because the client has left.
        """
        try:
            self._run(call)
        except BaseException as error:
            if not (self.inbox.gone and _comes_of_leaving(error)):
                raise
        finally:
            self._children = None

    def _run(self, call: Callable[[], Iterable[bytes]]) -> None:
        output = call()
        close = getattr(output, "close", None)
        try:
            if type(output) in (list, tuple):
                self._answer_at_once(output)
            elif self._answer_piecewise(output):
                end = self._response.end()
                # It is to be closed when the response has ended; to a generator that has, that is nothing.
                if close is None or isinstance(output, GeneratorType):
                    self.left_over = end
                else:
                    self.deliver(end)
        finally:
            if close is not None:
                # Take note of a cancellation: what close() itself waits for is not meant by it.
                with contextlib.suppress(asyncio.CancelledError):
                    check_cancelled()
                close()

    def _answer_at_once(self, chunks: Iterable[bytes]) -> None:
        response = self._response
        messages: list[Message] = []
        for chunk in chunks:
            messages += response.take(chunk)
            if response.complete:
                break
        if messages and response.missing_bytes:
            self.deliver(messages)
            messages = []
        self.left_over = messages + response.end()

    def _answer_piecewise(self, chunks: Iterable[bytes]) -> bool:
        """Send the pieces; True if the end of the response is left to be sent."""
        response = self._response
        self._answering = True
        self._check_wanted()
        for chunk in chunks:
            self._check_wanted()
            messages = response.take(chunk)
            if response.complete:
                self.deliver([*messages, END])
                return False
            if messages:
                self.deliver(messages)
        return True

    def write(self, data: bytes) -> None:
        """Send a piece of the body; WSGI's ``write``."""
        self._answering = True
        self._check_wanted()
        surplus = self._response.surplus_bytes(data)
        messages = self._response.take(data)
        if messages:
            self.deliver(messages)
        if surplus:
            raise ValueError(
                f"write() was called with {surplus} bytes beyond the Content-Length of {self._response.content_length}."
            )

    def deliver(self, messages: Sequence[Message]) -> None:
        """Send messages, and return when the server has taken them."""
        self.inbox.visit(_send_for_thread, self.inbox, self._send, messages)

    def _check_wanted(self) -> None:
        """Raise if the client has left, or the task that waits for the application was cancelled."""
        if self.inbox.gone:
            raise ClientLeftError("the client has left")
        check_cancelled()


async def _send(inbox: Inbox, send: Send, messages: Sequence[Message]) -> None:
    for message in messages:
        if inbox.gone:
            raise ClientLeftError("the client has left")
        try:
            await send(message)
        except OSError as error:
            logger.info("The client has left, says the server: %r", error)
            inbox.leave()
            raise ClientLeftError("the client has left") from error


_send_for_thread = AsyncToSync(_send)


def _comes_of_leaving(error: BaseException | None) -> bool:
    """Tell whether an error was caused by what the bridge raises when a client has left."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, (ClientLeftError, asyncio.CancelledError)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
