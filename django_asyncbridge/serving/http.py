"""An HTTP and WebSocket server for one process: `StatelessServer` around uvicorn."""

import asyncio
import contextlib
import importlib
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import TYPE_CHECKING, Literal

from django_asyncbridge.bridge.compatibility import guarantee_single_callable
from django_asyncbridge.bridge.server import StatelessServer
from django_asyncbridge.bridge.typing import ASGIApplication
from django_asyncbridge.serving import errors
from django_asyncbridge.serving._signals import taken
from django_asyncbridge.serving.address import Address, listen
from django_asyncbridge.signals import server_started, server_stopping

if TYPE_CHECKING:
    from django_asyncbridge.serving._uvicorn import Server

__all__ = ("HTTPServer", "require_uvicorn")


class HTTPServer(StatelessServer):
    """Serves an ASGI application over HTTP and WebSocket, with uvicorn, in this process.

    `run` is the whole life of a server in the main thread, signals included. `arun` does the same on a
    loop of yours and leaves signals alone; `stop` ends either, from any thread.

    A server serves once; for another time make another.

    uvicorn calls the application itself for now. The seam for a later version is `handle`: there, each
    request or WebSocket becomes an application instance of `StatelessServer`
    (`get_or_create_application_instance`, `application_send`). Until then no instances are made.

    Args:
        application: an ASGI 3 (or 2) application. A lifespan scope is offered to it and may be refused.
        max_applications: no effect yet, as there are no instances.
        listener: a socket that already listens (`django_asyncbridge.serving.address.listen`). It is the
            server's from here on: closed when serving ends.
        address: where to listen if there is no `listener`.

    Raises:
        errors.ServerNotInstalledError: uvicorn cannot be imported.
    """

    def __init__(
        self,
        application: ASGIApplication,
        max_applications: int = 1000,
        *,
        listener: socket.socket | None = None,
        address: Address | None = None,
    ) -> None:
        require_uvicorn()
        super().__init__(application, max_applications)
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
            asyncio.Runner(loop_factory=_event_loop_factory()) as runner,
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
        if number in self._signals_seen:
            # Not by letting the signal have its default effect: the kernel ignores that for process 1
            # of a container. The code is the one shells give for a death by signal.
            os._exit(128 + number)
        self._signals_seen.add(number)
        self.stop()

    def _how_to_end_at_once(self) -> str:
        """Return what the log adds where the server says what it still waits for."""
        names = [_signal_name(number) for number in sorted(self._signals_seen)]
        return f" ({' or '.join(names)} again ends the process at once)" if names else ""

    async def _tell(self, what: Literal["started", "stopping"]) -> None:
        """Send the Django signal of what the server does."""
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
            application = guarantee_single_callable(self.application)
            self._uvicorn = new_server(application, self._how_to_end_at_once, self._tell)
            self._uvicorn.should_exit = self._stop_requested
            await _serve(self._uvicorn, listener)


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


def _event_loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where uvloop is installed (it is not made for Windows), else None."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    return uvloop.new_event_loop
