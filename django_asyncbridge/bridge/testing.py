"""A client for tests: runs one ASGI application and exchanges messages with it."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django_asyncbridge.bridge import _crossings
from django_asyncbridge.bridge.compatibility import guarantee_single_callable

__all__ = ("ApplicationCommunicator",)


class ApplicationCommunicator:
    """Send messages to an ASGI application and read what it sends, as a server would.

    The application runs as one task of the event loop of the test, and starts with the first method
    that needs it, not with the constructor, which needs no event loop. It starts in an empty context:
    context variables of the test are not seen by it, nor its own by the test. All methods belong to
    the thread of that loop.

    What the application sends is kept in order until it is read, also when the application has failed
    since: its failure is raised after its last message. Running out of time in `receive_output` or
    `receive_nothing` leaves the application running and every message in place; only `wait` and
    `stop` end it, and the deletion of the communicator.

    Args:
        application: An ASGI 3 or ASGI 2 application.
        scope: The scope that it is called with.

    Attributes:
        application: The application, callable the ASGI 3 way.
        scope: The scope as given.

    Source: ASGI specification, "Applications".
    """

    # On the class, because a subclass that fails before it calls __init__ is still deleted.
    _future: "asyncio.Task[Any] | None" = None

    def __init__(self, application: Callable[..., Any], scope: Mapping[str, Any]) -> None:
        self.application = guarantee_single_callable(application)
        # Tests write to it before the application starts, whatever kind of mapping they gave.
        self.scope: Any = scope
        self._input_queue: asyncio.Queue[Any] = asyncio.Queue()
        self._output_queue = _OutputQueue()

    @property
    def input_queue(self) -> "asyncio.Queue[Any]":
        """The messages that wait for the application, oldest first."""
        return self._input_queue

    @property
    def output_queue(self) -> "asyncio.Queue[Any]":
        """The messages of the application that wait to be read, oldest first."""
        return self._output_queue

    @property
    def future(self) -> "asyncio.Task[Any]":
        """The task that runs the application. Reading this starts the application."""
        if self._future is None:
            self._future = asyncio.create_task(
                _call(self.application, self.scope, self._input_queue.get, self._output_queue.put),
                context=_crossings.fresh_context(),
            )
            # The event and not this object: the task must not keep the communicator alive, whose
            # deletion is what stops a forgotten application.
            changed = self._output_queue.changed
            self._future.add_done_callback(lambda _: changed.set())
        return self._future

    async def wait(self, timeout: float | None = 1) -> None:  # noqa: ASYNC109  (inherited)
        """Wait until the application has ended, and raise what it raised.

        When time runs out, or the caller is cancelled, the application is cancelled and waited for.
        Running out of time raises nothing, and neither does an application that ends cancelled.

        Args:
            timeout: Seconds the application may take to end by itself. None: no limit.

        Raises:
            Exception: Whatever the application failed with, also while it was being cancelled.
        """
        future = self.future
        try:
            await asyncio.wait([future], timeout=timeout)
        finally:
            if not future.done():
                future.cancel()
                await asyncio.wait([future])
        if not future.cancelled():
            future.result()

    def stop(self, exceptions: bool = True) -> None:
        """Cancel the application if it runs; it ends when the event loop goes on.

        An application that was never started stays so, and one that ended cancelled is left at that.

        Args:
            exceptions: Whether to raise what an application that had already ended failed with.

        Raises:
            Exception: Whatever the application failed with, if `exceptions`.
        """
        future = self._future
        if future is None:
            return
        if not future.done():
            future.cancel()
        elif exceptions and not future.cancelled():
            future.result()

    def __del__(self) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the task is over anyway
            self.stop(exceptions=False)

    async def send_input(self, message: Any) -> None:
        """Give the application a message. This does not wait until the application takes it.

        Args:
            message: What `receive` returns to the application: by the specification a dict with a "type".

        Raises:
            Exception: Whatever the application failed with, if it has.
            asyncio.CancelledError: The application ended cancelled.
        """
        if self.future.done():
            self.future.result()
        await self._input_queue.put(message)

    async def receive_output(self, timeout: float | None = 1) -> Any:  # noqa: ASYNC109  (inherited)
        """Take the next message that the application sends.

        Returns at once if there is one already. Does not wait for an application that has ended.
        Cancelling the caller loses no message and leaves the application running.

        Args:
            timeout: Seconds to wait for a message. None: no limit.

        Returns:
            The message, as the application passed it to `send`.

        Raises:
            Exception: Whatever the application failed with; it has sent nothing more.
            asyncio.CancelledError: The application ended cancelled and has sent nothing more.
            TimeoutError: There is no message and the application has ended, or none came in time.
        """
        if await self._has_output(timeout):
            return self._output_queue.get_nowait()
        if not self.future.done():
            raise TimeoutError(f"The application has sent no message within {timeout} s.")
        self.future.result()
        raise TimeoutError("The application has ended and has sent no further message.")

    async def receive_nothing(
        self,
        timeout: float | None = 0.1,  # noqa: ASYNC109  (inherited)
        interval: float = 0.01,
    ) -> bool:
        """Tell whether the application sends nothing for that long. No message is taken.

        Returns as soon as the answer is known: with the first message, or when the application ends.

        Args:
            timeout: Seconds without a message. None: until the application sends or ends.
            interval: Not used, since nothing is polled here; taken because asgiref takes it.

        Returns:
            True if there was no message, False if there is one to be taken.

        Raises:
            Exception: Whatever the application failed with; it has sent nothing before that.
            asyncio.CancelledError: The application ended cancelled and has sent nothing.
        """
        if await self._has_output(timeout):
            return False
        if self.future.done():
            self.future.result()
        return True

    async def _has_output(self, seconds: float | None) -> bool:
        """Wait for a message, the end of the application or of the time; tell if there is a message."""
        queue, out_of_time = self._output_queue, asyncio.Event()

        def run_out_of_time() -> None:
            out_of_time.set()
            queue.changed.set()

        loop = asyncio.get_running_loop()
        timer = None if seconds is None else loop.call_later(seconds, run_out_of_time)
        try:
            while queue.empty() and not self.future.done() and not out_of_time.is_set():
                queue.changed.clear()
                await queue.changed.wait()
        finally:
            if timer is not None:
                timer.cancel()
        # Asked again, because a message may come in the very turn of the loop that runs out of time.
        return not queue.empty()


class _OutputQueue(asyncio.Queue[Any]):
    """A queue that can be waited for without taking from it.

    `changed` is set when a message comes, and by others when it is not worth waiting any longer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed = asyncio.Event()

    def _put(self, item: Any) -> None:
        super()._put(item)
        self.changed.set()


async def _call(
    application: Callable[[Any, Any, Any], Awaitable[Any]], scope: Any, receive: Any, send: Any
) -> None:
    # A task needs a coroutine, and an application may be a plain callable that returns any awaitable,
    # or raises. Called in here, it also runs in the application's context from its first line.
    await application(scope, receive, send)
