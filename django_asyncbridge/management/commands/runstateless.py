"""``manage.py runstateless``: run a `StatelessServer` inside the project, until it ends or a signal comes.

What it does is in `django_asyncbridge.serving.stateless`; here is the command line, what is printed, and where the log goes.

Hard rules. What the user got wrong is one line, with no traceback and exit code 1. What a server raises while it runs is its own, and
keeps its traceback, unless it is a `ServingError`.

Which thread may touch what. A command runs in the main thread, from its start to its end.
"""

import functools
import logging
import os
import signal
import sys
from typing import Any, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, CommandParser
from django.utils.autoreload import get_child_arguments

from django_asyncbridge.management.serving_command import ServingCommand
from django_asyncbridge.serving.errors import ServingError
from django_asyncbridge.serving.stateless import (
    ServerRun,
    choose_application,
    import_server,
    make_server,
)
from django_asyncbridge.serving.supervisor import Supervisor

__all__ = ("Command", "show_logs")


class Command(ServingCommand):
    """Runs a server of any protocol until it ends by itself, Ctrl-C or SIGTERM."""

    help = "Runs a StatelessServer, a server of any protocol, inside the project."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the class, the application, and what the class is made with."""
        parser.add_argument(
            "server",
            help="The class, as mysite.servers.SyslogServer or mysite.servers:SyslogServer.",
        )
        parser.add_argument(
            "--option",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="An argument of the class, for example port=5514. Can be given several times.",
        )
        parser.add_argument(
            "--app",
            metavar="PATH",
            help="The ASGI application, as mysite.syslog.application or mysite.syslog:application. "
            "Default: settings.ASGI_APPLICATION, or the project.",
        )
        parser.add_argument(
            "--reload", action="store_true", help="Start again when code changes; for development."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the server, say so, and run it; every failure to start is one line."""
        try:
            if self.reloads and self.link is None:
                self.supervise()
            application, name = choose_application(options["app"])
            server = make_server(import_server(options["server"]), application, options["option"])
            self.warn_about_migrations()
            self.run(server, name)
        except (ServingError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from error

    def supervise(self) -> NoReturn:
        """Start this command line again as a worker, and anew whenever code changes."""
        self.require_command_line()
        show_logs()
        supervisor = Supervisor(
            get_child_arguments(),
            workers=1,
            listeners=(),
            # A server has its own time to drain.
            graceful_seconds=None,
            changes=self.changes_of_project(),
        )
        sys.exit(supervisor.run())

    def run(self, server: Any, name: str) -> None:
        """Print the banner, and run the server until it ends."""
        show_logs()
        run = ServerRun(server)
        # Taken before the banner: whoever reads it may send a signal at once.
        with run.stop_on_signals():
            cls = type(server)
            self.print_banner(f"Running {cls.__module__}.{cls.__qualname__} for {name}")
            if self.link is not None:
                self.link.watch(functools.partial(os.kill, os.getpid(), signal.SIGTERM))
                self.link.ready()
            run.run()


def show_logs() -> None:
    """Make our log visible on stderr, as far as the project's ``LOGGING`` sets neither a level nor handlers for it.

    To be called when the application has been loaded: an ``asgi.py`` configures logging once more, and what that disabled is
    enabled here. Calling it again changes nothing.
    """
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "django_asyncbridge":
            logging.getLogger(name).disabled = False
    log = logging.getLogger("django_asyncbridge")
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
