"""An HTTP and WebSocket server for one process: `StatelessServer` around uvicorn.

Theory of operation. uvicorn parses, and calls `HTTPServer._answer` in a task of its own for each request and each WebSocket. That
task is the application instance: it is in `application_instances` from then until it ends. No queue lies between, so that back-pressure
is uvicorn's, and a request costs one dict.

Which thread may touch what. `stop`, the handler of signals and `address` belong to any thread; `run` to the one that calls it;
everything else to the loop's thread. `stop` sets two flags, and `handle` looks at the first after it has made what the second
is in, so a stop that comes in between is not lost.
"""

import asyncio
import contextlib
import importlib
import itertools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from django_asyncbridge.bridge.compatibility import guarantee_single_callable
from django_asyncbridge.bridge.server import StatelessServer
from django_asyncbridge.bridge.typing import ASGIApplication
from django_asyncbridge.serving import errors, in_flight
from django_asyncbridge.serving._signals import taken
from django_asyncbridge.serving._too_many import TooMany
from django_asyncbridge.serving.address import Address, listen
from django_asyncbridge.serving.options import ServingOptions
from django_asyncbridge.serving.watchdog import watched
from django_asyncbridge.signals import server_started, server_stopping

if TYPE_CHECKING:
    from django_asyncbridge.serving._uvicorn import Server

__all__ = ("HTTPServer", "require_uvicorn")

logger = logging.getLogger("django_asyncbridge.serving")

_CLOSE = (b"connection", b"close")


class HTTPServer(StatelessServer):
    """Serves an ASGI application over HTTP and WebSocket, with uvicorn, in this process.

    `run` is the whole life of a server in the main thread, signals included. `arun` does the same on a
    loop of yours and leaves signals alone; `stop` ends either, from any thread.

    A server serves once; for another time make another.

    Each request and each WebSocket is an application instance: `application_instances` has it under a number while it is
    answered, with its ``scope``, its task (``future``) and when it came (``last_used``); there is no ``input_queue``, for the
    application receives from uvicorn. `in_flight` lists them in words, `delete_application_instance` cancels one.
    `application_exception` hears what an application raises, and uvicorn then answers 500.

    Args:
        application: an ASGI 3 (or 2) application. A lifespan scope is offered to it and may be refused.
        max_applications: how many requests and WebSockets there may be at a time; None for any number. What is
            too many is answered 503 with ``Retry-After``, a WebSocket refused; nothing that runs is ended for it.
        listener: a socket that already listens (`django_asyncbridge.serving.address.listen`). It is the
            server's from here on: closed when serving ends.
        address: where to listen if there is no `listener`.
        options: how to serve.
        on_started: called on the loop's thread once connections are taken.
        is_worker: whether somebody else decides when to end at once: then a second signal does not.

    Raises:
        errors.ServerNotInstalledError: uvicorn cannot be imported.
    """

    def __init__(
        self,
        application: ASGIApplication,
        max_applications: int | None = None,
        *,
        listener: socket.socket | None = None,
        address: Address | None = None,
        options: ServingOptions | None = None,
        on_started: Callable[[], object] | None = None,
        is_worker: bool = False,
    ) -> None:
        require_uvicorn()
        super().__init__(application, sys.maxsize if max_applications is None else max_applications)
        self.options = options or ServingOptions()
        self._on_started = on_started
        self._is_worker = is_worker
        self._call = guarantee_single_callable(application)
        self._numbers = itertools.count(1)
        self._too_many = TooMany(self.max_applications)
        self._draining = False
        self._listener = listener
        self._wanted = address or Address()
        self._address = None if listener is None else Address.of(listener)
        self._uvicorn: Server | None = None
        self._stop_requested = False
        self._signals_seen: set[int] = set()

    @property
    def address(self) -> Address | None:
        """Where the server really listens, with the port that the system chose if that was left to it.

        Known from the start with a `listener`, else from when `run` or `arun` has opened one; then it
        stays. None until then, and for a listener without host and port (a Unix socket). Any thread.
        """
        return self._address

    def in_flight(self) -> list[in_flight.InFlight]:
        """Return what the server is answering at this moment, the longest first; on the loop's thread."""
        records = [in_flight.record_of(details) for details in self.application_instances.values()]
        return sorted(records, key=lambda record: -record.seconds)

    def run(self) -> None:
        """Serve until `stop` or a signal, then return.

        SIGINT or SIGTERM ends it cleanly: nothing new is accepted, requests in flight finish, the
        application's lifespan ends, the socket is closed. A second signal of the same kind ends the
        process at once. Runs a new event loop (uvloop's where it is installed) in this thread; signals
        are only taken in the main thread.

        Raises:
            errors.ListenError: the address cannot be listened on.
            errors.StartupError: the application's lifespan failed to start.
            RuntimeError: this server has served already.
        """
        with (
            self.stop_on_signals(),
            asyncio.Runner(loop_factory=_event_loop_factory(self.options.loop)) as runner,
        ):
            runner.run(self.arun())

    def stop(self) -> None:
        """Ask the server to end cleanly and return at once. Any thread and any signal handler may call it."""
        self._stop_requested = True
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    def stop_on_signals(self) -> AbstractContextManager[None]:
        """Take the signals that end a server while the block runs; outside the main thread do nothing.

        `run` does this itself. Enter it earlier to be safe from a signal that arrives before `run`.
        """
        return taken(self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Stop cleanly on the first signal of a kind, at once on the second.

        Of a kind, because a process manager often adds its SIGTERM to the SIGINT that Ctrl-C has already
        sent to the whole process group: that is one wish to stop, not two.
        """
        # A supervisor sends its SIGTERM although the whole group may have got one.
        if number in self._signals_seen and not self._is_worker:
            # Not by letting the signal have its default effect: the kernel ignores that for process 1
            # of a container. The code is the one shells give for a death by signal.
            os._exit(128 + number)
        self._signals_seen.add(number)
        self.stop()

    def _how_to_end_at_once(self) -> str:
        """Return what the log adds where the server says what it still waits for."""
        names = [_signal_name(number) for number in sorted(self._signals_seen)]
        if self._is_worker:
            return ""
        return f" ({' or '.join(names)} again ends the process at once)" if names else ""

    async def _tell(self, what: Literal["started", "stopping"]) -> None:
        """Send the Django signal of what the server does."""
        if what == "started" and self._on_started is not None:
            self._on_started()
        if what == "stopping":
            self._draining = True
            if requests := self.in_flight():
                logger.info("Still answering: %s", in_flight.describe(requests))
        sent = server_started if what == "started" else server_stopping
        await sent.asend_robust(sender=type(self), address=self._address)

    async def handle(self) -> None:
        """Run uvicorn until it is told to stop.

        `stop` lets the requests in flight finish; cancelling this coroutine cancels them. Both end the
        application's lifespan and close the socket.

        Raises:
            errors.ListenError: the address cannot be listened on.
            errors.StartupError: the application's lifespan failed to start. The log says why.
            RuntimeError: this server has served already.
        """
        from django_asyncbridge.serving._uvicorn import new_server  # noqa: PLC0415 - optional

        if self._uvicorn is not None:
            raise RuntimeError("This HTTPServer has served already; make a new one to serve again.")
        with listen(self._wanted) if self._listener is None else self._listener as listener:
            self._address = Address.of(listener)
            self._uvicorn = new_server(
                self._answer, self.options, self._how_to_end_at_once, self._tell
            )
            self._uvicorn.should_exit = self._stop_requested
            async with watched(self.options.watchdog_seconds, self._describe_task):
                await _serve(self._uvicorn, listener)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the application for one request, WebSocket or lifespan, as uvicorn asks for it."""
        if scope["type"] == "lifespan":
            await self._call(scope, receive, send)
            return
        if len(self.application_instances) >= self.max_applications:
            await self._too_many.refuse(scope, receive, send)
            return
        number = next(self._numbers)
        details = {"future": asyncio.current_task(), "scope": scope, "last_used": self._now()}
        self.application_instances[number] = details
        try:
            await self._call(scope, receive, self._sender(send))
        except Exception as error:  # noqa: BLE001  # whatever an application raises
            await self._report_exception(error, details)
            raise errors.FailureReportedError from None
        finally:
            # `delete_application_instance` may have taken it out.
            self.application_instances.pop(number, None)

    def _sender(self, send: Any) -> Any:
        """Return a `send` that says, once the server is to stop, that the response is the last on its connection."""

        async def send_or_close(message: Any) -> None:
            if self._draining and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)

        return send_or_close

    async def application_exception(
        self, exception: BaseException, application_details: dict[str, Any]
    ) -> None:
        """Report that the application failed to answer; the default logs it as an error, with the request and the traceback.

        Override it to do more. It runs in the task of the request, before uvicorn answers; what it raises is logged.
        """
        line = in_flight.request_line(application_details["scope"])
        logger.error("%s failed in the application: %r", line, exception, exc_info=exception)

    async def application_drain(self) -> None:
        """Do nothing: when `handle` is over, uvicorn has waited for what was in flight."""

    def _describe_task(self, task: "asyncio.Task[Any]") -> str | None:
        """Return which request a task answers; None if it answers none, in any thread."""
        instances = list(self.application_instances.values())
        lines = (in_flight.request_line(one["scope"]) for one in instances if one["future"] is task)
        return next(lines, None)


def _signal_name(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


async def _serve(server: "Server", listener: socket.socket) -> None:
    """Run uvicorn's server in a task of its own, so that a cancellation can end it in order."""
    serving = asyncio.ensure_future(_run(server, listener))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        if server.started:
            server.abort()
        else:
            serving.cancel()
        await asyncio.wait([serving])
        raise


async def _run(server: "Server", listener: socket.socket) -> None:
    """Run uvicorn's server, and make one error of the two ways in which its versions fail to start."""
    # Newer versions call sys.exit() when the lifespan fails, older ones return without having started.
    with contextlib.suppress(SystemExit):
        await server.serve(sockets=[listener])
    if not server.started:
        raise errors.StartupError("The application failed to start; the log above says why.")


def require_uvicorn() -> None:
    """Say what to install if uvicorn is missing.

    Raises:
        errors.ServerNotInstalledError: uvicorn cannot be imported.
    """
    try:
        importlib.import_module("uvicorn")
    except ImportError as error:
        raise errors.ServerNotInstalledError(
            f'uvicorn cannot be imported ({error}); run: pip install "django-asyncbridge[server]"'
        ) from error


def _event_loop_factory(name: str = "auto") -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where uvloop is installed (it is not made for Windows) and wanted, else None."""
    if name == "asyncio":
        return None
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop
