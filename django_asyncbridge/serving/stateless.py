"""Running any `StatelessServer` inside Django: which class, made with what, and how it ends. ``runstateless`` without the command line.

Hard rules. A class is never guessed at: what is no server is refused, with what to write instead. Whatever else a class does in its `run`, the first signal ends its `handle` and the second the process; a `run` that takes SIGINT
over itself keeps both.

Theory of operation. `handle` is the one method that every server has and that every way of running one comes to. So a `ServerRun` puts
itself in its place, on that one instance: there it sends Django's signals, runs the class's own `handle` in a task, and ends that task
when a signal asks for it. To the server this is a `handle` that returned; it winds up, and `run` returns.

Which thread may touch what. A `ServerRun` belongs to the thread that calls `run`. Its handler of signals runs in the main thread, and only
sets a flag and wakes the event loop. Everything else keeps nothing; any thread may call it.
"""

import asyncio
import functools
import inspect
import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from django.conf import settings
from django.dispatch import Signal

from django_asyncbridge._servable import application_refusal
from django_asyncbridge.asgi import get_asgi_application
from django_asyncbridge.bridge._ending import ended, raise_failure, to_the_end
from django_asyncbridge.bridge.server import StatelessServer
from django_asyncbridge.serving._server_options import make_server
from django_asyncbridge.serving._signals import STOP_SIGNALS, taken
from django_asyncbridge.serving.application import import_application, import_object
from django_asyncbridge.serving.errors import (
    ApplicationError,
    OptionError,
    ServerClassError,
)
from django_asyncbridge.serving.http import HTTPServer
from django_asyncbridge.signals import server_started, server_stopping

__all__ = (
    "OptionError",
    "ServerClassError",
    "ServerRun",
    "choose_application",
    "import_server",
    "make_server",
)

logger = logging.getLogger("django_asyncbridge.serving.stateless")


# --- What to run ---------------------------------------------------------------------


def import_server(path: str) -> type[Any]:
    """Import the server class that `path` names, ours or one of asgiref's ``StatelessServer``.

    Args:
        path: ``mysite.servers.SyslogServer`` or ``mysite.servers:SyslogServer``.

    Raises:
        ServerClassError: nothing is there, importing it raised, or it is no class that can serve; with what to name or write instead.
            What the import raised is the error's ``__cause__``.
    """
    found = import_object(path, "mysite.servers.SyslogServer", ServerClassError)
    problem = _problem_of(found)
    if problem is not None:
        raise ServerClassError(f"{path!r} {problem}")
    cls: type[Any] = found
    return cls


def _problem_of(found: object) -> str | None:
    """Return why an object is no server class, as the end of a sentence about it; None if it is one."""
    if not isinstance(found, type):
        kind = type(found)
        if _base_of(kind) is not None:
            return f"is not a class, but an object of one; name {_path_of(kind)}."
        return f"is not a class, but a {kind.__name__}; name a class that inherits from {_OURS}."
    cls: Any = found
    base = _base_of(cls)
    if base is None:
        return f"is not a StatelessServer; let it inherit from {_OURS}."
    if cls.handle is base.handle:
        return 'has no handle(); override it: "async def handle(self)", which takes in events as long as the server runs.'
    if inspect.isabstract(cls):
        names = ", ".join(f"{name}()" for name in sorted(cls.__abstractmethods__))
        return f"is abstract; name a class that overrides {names}."
    return None


def _base_of(cls: type) -> Any:
    """Return the ``StatelessServer`` that a class inherits from, ours or asgiref's; None if it does not."""
    for base in cls.__mro__:
        # By name, since asgiref is not imported here; its class has the same methods.
        if base is StatelessServer or _path_of(base) == "asgiref.server.StatelessServer":
            return base
    return None


def _path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


_OURS = _path_of(StatelessServer)


def choose_application(path: str | None) -> tuple[Any, str]:
    """Return the ASGI application for a server's instances, and the words a banner uses for it.

    To be called before the server class is imported: an ``asgi.py`` configures logging once more, which may disable the loggers that
    exist. Static files are not served beside it.

    Args:
        path: ``mysite.syslog.application`` or ``mysite.syslog:application``; None for what ``settings.ASGI_APPLICATION`` names, or
            the project with this package's handler if that is not set.

    Raises:
        django_asyncbridge.serving.errors.ApplicationError: it cannot be imported, or is no ASGI application.
        django.core.exceptions.ImproperlyConfigured: the setting ``ASYNCBRIDGE`` is wrong.
    """
    named = getattr(settings, "ASGI_APPLICATION", None)
    if path is not None:
        application = import_object(path, "mysite.syslog.application", ApplicationError)
        refusal = application_refusal(application)
        if refusal is not None:
            raise ApplicationError(f"{path!r} {refusal.problem}. {refusal.hint}")
        return application, f"ASGI application {path!r}"
    if named is not None:
        return import_application(named), f"ASGI application {named!r}"
    return get_asgi_application(), "the project"


# --- Running it ----------------------------------------------------------------------


class ServerRun:
    """One run of a server inside Django: signals of the system end it, signals of Django tell of it.

    `run` calls the server's own `run`, whatever that is. The first SIGINT or SIGTERM ends `handle`; the server then winds up
    as it does when `handle` returns. A second signal of the same kind ends the process at once. A `run` that handles SIGINT itself
    (that of `HTTPServer` does) keeps the signals.

    Args:
        server: made by `make_server`. Its `handle` is replaced, on this object only.
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._handle = server.handle
        self._signals_seen: list[int] = []
        self._wake: Callable[[], object] | None = None
        server.handle = self._handle_until_told

    def run(self) -> None:
        """Run the server until it ends by itself or a signal asks for it.

        Raises:
            Exception: whatever the server's `run` raises.
        """
        with self.stop_on_signals():
            self._server.run()

    def stop_on_signals(self) -> AbstractContextManager[None]:
        """Take the signals that end a server while the block runs; outside the main thread do nothing.

        `run` does this itself. Enter it earlier to be safe from a signal that arrives before `run`.
        """
        return taken(self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        # Of a kind, at once, and with that code: for the reasons that HTTPServer gives.
        if number in self._signals_seen:
            os._exit(128 + number)
        self._signals_seen.append(number)
        wake = self._wake  # the loop may be in another thread, which ends it just now
        if wake is not None:
            wake()

    async def _handle_until_told(self) -> None:
        """Stand in for `handle`: run it until it ends, is cancelled, or a signal has come."""
        self._take_signals_back()
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        tasks: list[asyncio.Future[Any]] = []
        self._wake = functools.partial(loop.call_soon_threadsafe, stop.set)
        # Looked at after that, or a signal between the two would be lost.
        if self._signals_seen:
            self._wake = None
            return
        try:
            await self._tell(server_started)
            tasks += [asyncio.ensure_future(self._handle()), loop.create_task(stop.wait())]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].cancelled():  # by itself, for nobody has asked yet
                raise asyncio.CancelledError
        finally:
            self._wake = None
            await to_the_end(self._end(tasks))
            raise_failure(tasks)

    async def _end(self, tasks: "list[asyncio.Future[Any]]") -> None:
        if self._signals_seen:
            name = _name_of(self._signals_seen[0])
            logger.info("Stopping. (%s again ends the process at once)", name)
        await self._tell(server_stopping)
        for task in tasks:
            task.cancel()
        await ended(tasks, "handle()")

    def _take_signals_back(self) -> None:
        """Take again what the server's `run` has taken, unless it has taken them all: then it has its own way to end."""
        ours = signal.getsignal(signal.SIGINT) == self._on_signal
        if ours and threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._on_signal)

    async def _tell(self, what: Signal) -> None:
        # An HTTPServer tells of itself, when it really listens.
        if not isinstance(self._server, HTTPServer):
            await what.asend_robust(sender=type(self._server), address=None)


def _name_of(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
