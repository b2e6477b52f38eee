"""``manage.py runasgi``: serve the project over ASGI, in one process."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections

from django_asyncbridge.serving.address import Address, listen, parse_addrport
from django_asyncbridge.serving.application import Served, project_application
from django_asyncbridge.serving.errors import ServingError
from django_asyncbridge.serving.http import HTTPServer, require_uvicorn


class Command(BaseCommand):
    """Serves the project over ASGI until Ctrl-C or SIGTERM."""

    help = "Serves the project over ASGI (HTTP and WebSocket), in one process, with uvicorn."

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the address to listen on, in runserver's forms."""
        parser.add_argument(
            "addrport",
            nargs="?",
            help="Port, or address:port ([address]:port for IPv6); 127.0.0.1:8000 if not given.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Find out what to serve and where, say so, and serve; every failure is one line."""
        if not settings.DEBUG and not settings.ALLOWED_HOSTS:
            raise CommandError("You must set settings.ALLOWED_HOSTS if DEBUG is False.")
        try:
            require_uvicorn()
            address = parse_addrport(options["addrport"])
            served = project_application()
            self.warn_about_migrations()
            self.serve(served, address)
        except ServingError as error:
            raise CommandError(str(error)) from error

    def warn_about_migrations(self) -> None:
        """Say which migrations are missing; a database that is down must not keep the site down."""
        try:
            self.check_migrations()
        except DatabaseError as error:
            text = f"The database does not answer, so its migrations were not checked: {error}"
            self.stderr.write(self.style.WARNING(text))
        finally:
            connections.close_all()

    def serve(self, served: Served, address: Address) -> None:
        """Listen, print the banner, and serve until told to stop."""
        from django_asyncbridge.serving.logs import show_server_logs  # noqa: PLC0415 - optional

        show_server_logs()
        listener = listen(address)
        server = HTTPServer(served.application, listener=listener)
        # Taken before the banner: whoever reads it may send a signal at once.
        with server.stop_on_signals():
            self.print_banner(served.name, address.url(listener.getsockname()[1]))
            server.run()

    def print_banner(self, name: str, url: str) -> None:
        """Say what is served, where, and how to stop it."""
        self.stdout.write(
            f"{datetime.now().strftime('%B %d, %Y - %X')}\n"
            f"Django version {self.get_version()}, using settings {settings.SETTINGS_MODULE!r}\n"
            f"Serving {name} at {url}\n"
            "Quit the server with CONTROL-C."
        )
        # Python holds lines back when the output is not a terminal.
        self.stdout.flush()
