"""``manage.py runasgi``: serve the project over ASGI, in this process or in several.

What it does is in `django_asyncbridge.serving`; here is what the options come to, what is printed, and in which process which part
happens. Alone, the command listens, prints the banner and serves. With ``--workers`` or ``--reload`` it listens, prints the banner, and
starts its own command line again for each worker (`django_asyncbridge.serving.supervisor`); a worker serves what it inherits, and prints
nothing.

Which thread may touch what. A command runs in the main thread, from its start to its end.
"""

import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser
from django.utils.autoreload import get_child_arguments

from django_asyncbridge import conf
from django_asyncbridge.management.serving_arguments import (
    add_serving_arguments,
    check_combination,
    serving_options,
)
from django_asyncbridge.management.serving_command import ServingCommand
from django_asyncbridge.serving._worker_link import WorkerLink
from django_asyncbridge.serving.address import (
    inherit,
    listen,
    listen_unix,
    parse_addrport,
    remove_unix,
)
from django_asyncbridge.serving.application import (
    Served,
    name_of_application,
    named_application,
    project_application,
)
from django_asyncbridge.serving.errors import ServingError
from django_asyncbridge.serving.http import HTTPServer, require_uvicorn
from django_asyncbridge.serving.options import ServingOptions, check_certificate
from django_asyncbridge.serving.supervisor import Supervisor

__all__ = ("Command",)


class Command(ServingCommand):
    """Serves the project over ASGI until Ctrl-C or SIGTERM."""

    help = "Serves the project over ASGI (HTTP and WebSocket), with uvicorn."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take where to listen, what to serve and how."""
        add_serving_arguments(parser)

    def wants_reload(self, options: dict[str, Any]) -> bool:
        """Tell whether code that changes is to be loaded again: with ``DEBUG``, unless the options say otherwise."""
        if options["reload"] is not None or options["workers"] is not None:
            return bool(options["reload"])
        # `call_command` does not ask for it by itself.
        return settings.DEBUG and self.is_on_command_line()

    def handle(self, *args: Any, **options: Any) -> None:
        """Find out what to serve and where, say so, and serve; every failure is one line."""
        if not settings.DEBUG and not settings.ALLOWED_HOSTS:
            raise CommandError("You must set settings.ALLOWED_HOSTS if DEBUG is False.")
        try:
            require_uvicorn()
            check_combination(options)
            in_workers = self.reloads or options["workers"] is not None
            if in_workers:
                self.require_command_line()
            how = checked_options(options)
            if self.looks_first:
                self.warn_about_migrations()
            if self.link is not None:
                self.work(self.link, how, options)
            elif in_workers:
                self.supervise(how, options)
            else:
                self.serve(how, options)
        except (ServingError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error

    # --- In one process ----------------------------------------------------------------

    def serve(self, how: ServingOptions, options: dict[str, Any]) -> None:
        """Listen, print the banner, and serve until told to stop."""
        served = chosen_application(options)
        with listening(options, how) as (listener, where):
            server = new_server(served, how, options, listener)
            # Taken before the banner: whoever reads it may send a signal at once.
            with server.stop_on_signals():
                self.print_serving_banner(served.name, where)
                server.run()

    # --- In several ----------------------------------------------------------------------

    def supervise(self, how: ServingOptions, options: dict[str, Any]) -> None:
        """Listen, print the banner, and keep workers running until told to stop; in the parent."""
        conf.current()
        show_server_logs()
        workers = options["workers"] or 1
        what = "reloading when code changes" if self.reloads else f"{workers} workers"
        with listening(options, how) as (listener, where):
            supervisor = Supervisor(
                get_child_arguments(),
                workers=workers,
                listeners=[listener],
                graceful_seconds=how.graceful_seconds,
                changes=self.changes_of_project() if self.reloads else None,
            )
            name = name_of_application(options["app"])
            code = supervisor.run(lambda: self.print_serving_banner(f"{name} ({what})", where))
        sys.exit(code)

    def work(self, link: WorkerLink, how: ServingOptions, options: dict[str, Any]) -> None:
        """Serve what the parent listens on, and say nothing but what the log says; in a worker."""
        served = chosen_application(options)
        (listener,) = map(inherit, link.listeners)
        server = new_server(served, how, options, listener, link)
        with server.stop_on_signals():
            link.watch(server.stop)
            server.run()

    def print_serving_banner(self, what: str, where: str) -> None:
        """Say what is served and where, and what the setting ``ASYNCBRIDGE`` comes to."""
        self.print_banner(f"Serving {what} at {where}\nASYNCBRIDGE: {conf.current().in_words()}")


def checked_options(options: dict[str, Any]) -> ServingOptions:
    """Return how to serve, if all of that is there.

    Raises:
        ServingError: an option has no meaning, or names what is not installed or not there.
    """
    from django_asyncbridge.serving._uvicorn import check_choices  # noqa: PLC0415 - optional

    how = serving_options(options, debug=settings.DEBUG)
    check_choices(how)
    check_certificate(how)
    return how


def chosen_application(options: dict[str, Any]) -> Served:
    """Return what ``--app`` names, or the project's application."""
    served = project_application() if options["app"] is None else named_application(options["app"])
    # It may have configured logging once more.
    show_server_logs()
    return served


def show_server_logs() -> None:
    """Make the log of the server visible."""
    from django_asyncbridge.serving import logs  # noqa: PLC0415 - optional

    logs.show_server_logs()


def new_server(
    served: Served,
    how: ServingOptions,
    options: dict[str, Any],
    listener: socket.socket,
    link: WorkerLink | None = None,
) -> HTTPServer:
    """Return the server that the options ask for; with a link, that of a worker."""
    return HTTPServer(
        served.application,
        options["limit_concurrency"],
        listener=listener,
        options=how,
        on_started=None if link is None else link.ready,
        is_worker=link is not None,
    )


@contextlib.contextmanager
def listening(options: dict[str, Any], how: ServingOptions) -> Iterator[tuple[socket.socket, str]]:
    """Open the socket that the options ask for, and say where that is; remove a Unix socket at the end."""
    if options["uds"] is not None:
        with listen_unix(options["uds"]) as listener:
            try:
                yield listener, f"the Unix socket {options['uds']}"
            finally:
                listener.close()
                remove_unix(options["uds"])
    elif options["fd"] is not None:
        with inherit(options["fd"]) as listener:
            yield listener, f"the inherited socket {options['fd']}"
    else:
        wanted = parse_addrport(options["addrport"])
        with listen(wanted) as listener:
            yield listener, wanted.url(listener.getsockname()[1], how.scheme)
