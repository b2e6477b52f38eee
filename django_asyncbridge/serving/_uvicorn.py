"""The only module that runs uvicorn; `django_asyncbridge.serving.http` imports it when it serves."""

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Generator
from typing import Literal

import uvicorn

from django_asyncbridge.bridge.typing import ASGI3Application

_Tell = Callable[[Literal["started", "stopping"]], Awaitable[object]]

# What uvicorn adds to the messages in which it says what it still waits for.
_UVICORN_HINT = " (CTRL+C to force quit)"


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with a way to end without waiting.

    uvicorn raises a signal again after a clean stop, so that the process dies of it, and lets only a
    second SIGINT force the end. Signals are `HTTPServer`'s.

    Args:
        config: uvicorn's.
        hint: returns what to say, where uvicorn says that Ctrl-C ends the waiting.
        tell: called with "started" once connections are taken, and with "stopping" when the end begins.
    """

    def __init__(self, config: uvicorn.Config, hint: Callable[[], str], tell: _Tell) -> None:
        super().__init__(config)
        self._hint = hint
        self._tell = tell
        self._aborting = False

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the process's signal handlers as they are while uvicorn serves."""
        logger = logging.getLogger("uvicorn.error")
        logger.addFilter(self._correct_hint)
        try:
            yield
        finally:
            logger.removeFilter(self._correct_hint)

    def _correct_hint(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, str) and record.msg.endswith(_UVICORN_HINT):
            record.msg = record.msg.removesuffix(_UVICORN_HINT) + self._hint()
        return True

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
        """End as uvicorn does, after cancelling what is in flight if that is wanted."""
        if self._aborting:
            # First nothing new may come in, or a request that arrives now would be waited for.
            for server in self.servers:
                server.close()
            self._cancel_requests()
        await self._tell("stopping")
        await super().shutdown(sockets)

    def _cancel_requests(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()


def new_server(application: ASGI3Application, hint: Callable[[], str], tell: _Tell) -> Server:
    """Return a server for `application` that has not started.

    `hint` is called while the server ends, for what its log says about ending at once; `tell` with what the server does.

    Logging is left alone (`django_asyncbridge.serving.logs`), and the kind of application is said, not
    guessed.
    """
    config = uvicorn.Config(application, interface="asgi3", lifespan="auto", log_config=None)
    return Server(config, hint, tell)
