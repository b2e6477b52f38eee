"""The only module that runs uvicorn; `django_asyncbridge.serving.http` imports it when it serves."""

import contextlib
import socket
from collections.abc import Generator

import uvicorn

from django_asyncbridge.bridge.typing import ASGI3Application


class Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with a way to end without waiting.

    uvicorn raises a signal again after a clean stop, so that the process dies of it, and lets only a
    second SIGINT force the end. Signals are `HTTPServer`'s.
    """

    _aborting = False

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the process's signal handlers as they are."""
        yield

    def abort(self) -> None:
        """Stop, and cancel the requests in flight instead of letting them finish.

        Loop thread only. The lifespan still ends in order, where uvicorn's `force_exit` would skip it.
        """
        self._aborting = self.should_exit = True
        self._cancel_requests()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End as uvicorn does, after cancelling what is in flight if that is wanted."""
        if self._aborting:
            # First nothing new may come in, or a request that arrives now would be waited for.
            for server in self.servers:
                server.close()
            self._cancel_requests()
        await super().shutdown(sockets)

    def _cancel_requests(self) -> None:
        for task in self.server_state.tasks:
            task.cancel()


def new_server(application: ASGI3Application) -> Server:
    """Return a server for `application` that has not started.

    Logging is left alone (`django_asyncbridge.serving.logs`), and the kind of application is said, not
    guessed.
    """
    config = uvicorn.Config(application, interface="asgi3", lifespan="auto", log_config=None)
    return Server(config)
