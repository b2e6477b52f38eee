"""The only module that runs uvicorn; `django_asyncbridge.serving.http` imports it when it serves.

Theory of operation. A stop has four steps: nothing new is accepted; connections on which another request may come are listened to for a
moment, since the client may be sending it already, and each answer from now on says that it is the last on its connection; then
idle connections are closed, and what is in flight is waited for, or cancelled when its time is over; at last uvicorn ends as it does, with
the lifespan. Without the second step, a client that keeps its connection would have requests refused that it sent in good faith.

Which thread may touch what. All of it belongs to the loop's thread, except that any thread and a signal handler may set `should_exit`.
"""

import asyncio
import contextlib
import importlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Literal

import uvicorn
import uvicorn.config

from django_asyncbridge.bridge.typing import ASGI3Application
from django_asyncbridge.serving._protocols import forgiving, is_too_large, limited
from django_asyncbridge.serving.errors import FailureReportedError, OptionError
from django_asyncbridge.serving.options import ServingOptions

_Tell = Callable[[Literal["started", "stopping"]], Awaitable[object]]

# What uvicorn adds to the messages in which it says what it still waits for.
_UVICORN_HINT = " (CTRL+C to force quit)"
# How uvicorn's log begins where an application has raised.
_UVICORN_FAILURE = "Exception in ASGI application"
_UVICORN_GARBAGE = "Invalid HTTP request received."
# Not measured: a small part of any time that may be given to idle connections.
_LOOK_SECONDS = 0.02
# Not measured: what is cancelled has that long to clean up before the lifespan ends.
_CANCEL_SECONDS = 2.0

logger = logging.getLogger("django_asyncbridge.serving")


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with a way to end without waiting.

    uvicorn raises a signal again after a clean stop, so that the process dies of it, and lets only a
    second SIGINT force the end. Signals are `HTTPServer`'s.

    Args:
        config: uvicorn's, with no time for what is in flight: that is in `options`.
        options: how to serve.
        hint: returns what to say, where uvicorn says that Ctrl-C ends the waiting.
        tell: called with "started" once connections are taken, and with "stopping" when nothing new is accepted any more.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        options: ServingOptions,
        hint: Callable[[], str],
        tell: _Tell,
    ) -> None:
        super().__init__(config)
        self._options = options
        self._hint = hint
        self._tell = tell
        self._aborting = False

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the process's signal handlers as they are while uvicorn serves."""
        uvicorn_s = logging.getLogger("uvicorn.error")
        uvicorn_s.addFilter(self._correct)
        try:
            yield
        finally:
            uvicorn_s.removeFilter(self._correct)

    def _correct(self, record: logging.LogRecord) -> bool:
        """Say in uvicorn's messages what is true here, and leave out what was said already."""
        text = str(record.msg)
        if text.endswith(_UVICORN_HINT):
            record.msg = text.removesuffix(_UVICORN_HINT) + self._hint()
        if text == _UVICORN_GARBAGE and is_too_large(sys.exception()):
            return False
        # A cancellation is no failure: somebody wanted it, and has said so.
        known = (FailureReportedError, asyncio.CancelledError)
        said = record.exc_info and isinstance(record.exc_info[1], known)
        return not (said and text.startswith(_UVICORN_FAILURE))

    def abort(self) -> None:
        """Stop, and cancel the requests in flight instead of letting them finish.

        Loop thread only. The lifespan still ends in order, where uvicorn's `force_exit` would skip it.
        """
        self._aborting = self.should_exit = True
        self._cancel_requests()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin as uvicorn does, and tell."""
        await super().startup(sockets)
        if (
            self.started
        ):  # pragma: no branch  # only some versions come here when the lifespan has failed
            await self._tell("started")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does, after giving idle connections a moment, or cancelling what is in flight if that is wanted."""
        # First nothing new may come in, or a request that arrives now would be waited for.
        for server in self.servers:
            server.close()
        if self._aborting:
            self._cancel_requests()
        await self._tell("stopping")
        await self._hear_out()
        await self._drain()
        await super().shutdown(sockets)

    async def _hear_out(self) -> None:
        """Wait a moment, as long as there are connections on which the client may be sending a request."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.idle_grace_seconds
        connections = self.server_state.connections
        while True:
            # uvicorn tells nobody when a connection ends or a request begins; and one that was accepted last is not
            # among the connections at once.
            await asyncio.sleep(_LOOK_SECONDS)
            if self._aborting or loop.time() >= deadline or not any(map(_may_ask, connections)):
                return

    async def _drain(self) -> None:
        """Close what is idle, and wait for what is in flight until its time is over; then cancel it."""
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        graceful_seconds = self._options.graceful_seconds
        try:
            await asyncio.wait_for(self._wait_tasks_to_complete(), graceful_seconds)
        except TimeoutError:
            logger.warning(
                "%d requests and %d connections have not ended in %s s, and are cut off",
                len(state.tasks),
                len(state.connections),
                graceful_seconds,
            )
            self._cancel_requests()
            if state.tasks:
                await asyncio.wait(state.tasks, timeout=_CANCEL_SECONDS)
            # Their clients may never take what is left to send.
            for connection in list(state.connections):
                connection.transport.abort()

    def _cancel_requests(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()


def _may_ask(connection: Any) -> bool:
    """Tell whether the client of a connection does not know yet that no other request is taken; a WebSocket's asks nothing."""
    # What uvicorn's own `shutdown` of a connection looks at, in all of its implementations of HTTP.
    cycle = getattr(connection, "cycle", connection)
    if cycle is None or cycle is connection:
        return cycle is None
    # An answer that has not begun will say so.
    return bool(cycle.response_complete or (cycle.response_started and cycle.keep_alive))


def new_server(
    application: ASGI3Application,
    options: ServingOptions,
    hint: Callable[[], str],
    tell: _Tell,
) -> Server:
    """Return a server for `application` that has not started.

    `hint` is called while the server ends, for what its log says about ending at once; `tell` with what the server does.

    Logging is left alone (`django_asyncbridge.serving.logs`), and the kind of application is said, not
    guessed.
    """
    settings: dict[str, Any] = {
        "http": options.http,
        "ws": options.ws,
        "lifespan": options.lifespan,
        "root_path": options.root_path,
        "proxy_headers": options.proxy_headers,
        "forwarded_allow_ips": options.forwarded_allow_ips,
        "access_log": options.access_log,
        "timeout_keep_alive": options.keep_alive_seconds,
        "limit_max_requests": options.max_requests,
        "ssl_certfile": options.certificate,
        "ssl_keyfile": options.certificate_key,
        "ssl_keyfile_password": options.certificate_password,
    }
    config = uvicorn.Config(application, interface="asgi3", log_config=None, **settings)
    config.load()
    config.http_protocol_class = limited(config.http_protocol_class)
    if config.ws_protocol_class is not None:
        config.ws_protocol_class = forgiving(config.ws_protocol_class)
    return Server(config, options, hint, tell)


def check_choices(options: ServingOptions) -> None:
    """Say whether this uvicorn has the parser, the WebSockets and the event loop that were chosen.

    Raises:
        OptionError: it has none of that name, or what that is made of is not installed.
    """
    config = uvicorn.config
    _check("--http", options.http, config.HTTP_PROTOCOLS)
    _check("--ws", options.ws, config.WS_PROTOCOLS)
    _check("--loop", options.loop, dict.fromkeys(("auto", "asyncio", "uvloop")), "uvloop")


def _check(option: str, name: str, known: Any, *modules: str) -> None:
    if name not in known:
        raise OptionError(f"{option} {name}: choose one of {', '.join(sorted(known))}.")
    # uvicorn keeps them as "module:attribute".
    path = known[name] or (name if name in modules else None)
    try:
        if path is not None:
            importlib.import_module(path.partition(":")[0])
    except ImportError as error:
        raise OptionError(
            f"{option} {name}: {error.name or error} is not installed; choose another, "
            'or run: pip install "django-asyncbridge[server]"'
        ) from error
